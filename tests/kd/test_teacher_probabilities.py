"""Probabilities from a CSV as a teacher: what is read, what is refused, and what a student learns from them."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TINY, classed_pdf

from docvit.data.augment import Augmentation
from docvit.data.labels import DataError, read_labelled
from docvit.documents.patches import pack
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.training.distributed import Process
from docvit.training.loop import TrainingError, TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from kd import cli
from kd.config import DistillationError, DistillConfig
from kd.documents.outputs import DocumentTeacher, document_outputs
from kd.documents.paired import PairedBatch, paired_batches
from kd.documents.probabilities import read_probabilities
from kd.documents.run import distill_documents
from kd.objective import DistillationLoss
from kd.teacher import ensemble_logits

CONFIG = DocViTConfig(**TINY, num_classes=3)
PROCESS = Process(torch.device("cpu"))
RECIPE = Recipe(
    model="docvit_small_patch16", settings=TINY, budget=200, ema=0.9, train=TrainSettings(epochs=1, lr=3e-3)
)


@pytest.fixture(scope="module")
def data(corpus):
    return read_labelled(corpus).subset([0, 1, 4, 5, 8, 9])


def predictions(paths, seed=0):
    """(documents, 3) of probabilities that no two documents share."""
    return np.random.default_rng(seed).dirichlet((1, 1, 1), len(paths))


def write(file, paths, values, header=("path", *CLASSES)):
    with Path(file).open("w", newline="") as out:
        csv.writer(out).writerows([header, *([path, *row] for path, row in zip(paths, values, strict=True))])
    return file


def distil(data, folder, file, *, teacher=(), config=DistillConfig(), recipe=RECIPE, **options):
    given = {"teacher_probabilities": file, "device": "cpu", "workers": 0}
    return distill_documents(recipe, teacher, data, folder, config, **given, **options)


# --- the file


def test_rows_are_read_by_path_and_columns_by_class(tmp_path):
    (tmp_path / "table.csv").write_text(
        "Text; PATH ;bars;blocks\n0.2;sub/a.pdf;0.8;0\n1;b.pdf;0;0\n.3;other.pdf;.3;.4\n"
    )
    paths = [str(tmp_path / "b.pdf"), str(tmp_path / "sub" / ".." / "sub" / "a.pdf")]
    table = read_probabilities(tmp_path / "table.csv", CLASSES, paths)
    expected = np.log([[1e-6, 1e-6, 1], [0.8, 1e-6, 0.2]])
    np.testing.assert_allclose(table.logits(paths).numpy(), expected, rtol=1e-5)
    with pytest.raises(DataError, match=r"no row for gone\.pdf"):
        table.logits([*paths, "gone.pdf"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,bars,text\na.pdf,.5,.5\n", ["missing column: blocks", "no row for b.pdf"]),
        ("bars,blocks,text\n.5,.5,0\n", ["missing column: path"]),
        ("path,bars,blocks,text,odd,file\na.pdf,1,0,0,0,0\n", ["columns that are no class: odd, file", "no row for b"]),
        ("path,bars,blocks,text\na.pdf,x,0,1\nb.pdf,1,,0\n", ["line 2: no probability", "line 3: no probability"]),
        ("path,bars,blocks,text\na.pdf,-.1,1,.1\nb.pdf,nan,1,0\n", ["line 2: a probability that is", "line 3: a prob"]),
        ("path,bars,blocks,text\na.pdf,.5,.5,.01\nb.pdf,.4,.3,.29\n", ["line 2: .* 1.01, not", "line 3: .* 0.99, not"]),
        ("path,bars,blocks,text\na.pdf,1,0,0\n./a.pdf,0,1,0\n,1,0,0\n", ["line 3: a second row", "line 4: empty path"]),
        ("", ["no row for a.pdf", "no row for b.pdf"]),
    ],
)
def test_what_is_wrong_with_a_file_is_listed_at_once(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text(text)
    with pytest.raises(DataError) as raised:
        read_probabilities("table.csv", CLASSES, ["a.pdf", "b.pdf"])
    for word in words:
        assert any(re.search(word, line) for line in raised.value.problems), raised.value.problems


def test_rounded_probabilities_are_taken_and_no_file_is_refused(tmp_path):
    write(tmp_path / "table.csv", ["a.pdf"], [(0.333, 0.333, 0.3335)])
    read_probabilities(tmp_path / "table.csv", CLASSES, [str(tmp_path / "a.pdf")])
    with pytest.raises(DataError, match="not a CSV that can be read"):
        read_probabilities(tmp_path / "gone.csv", CLASSES, [])


# --- the loss


def kl(student, probabilities, t):
    return t * t * F.kl_div((student / t).log_softmax(1), probabilities, reduction="batchmean")


def softened(probabilities, t):
    raised = probabilities ** (1 / t)
    return raised / raised.sum(1, keepdim=True)


def network(seed):
    torch.manual_seed(seed)
    made = DocViT(CONFIG).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


def batch_with(*tables):
    generator = torch.Generator().manual_seed(0)
    pages = [[torch.rand(1, 64, 48, generator=generator) for _ in range(count)] for count in (2, 1, 3)]
    sequence, index = pack(pages, 16, channels=1, drop_blank=False), torch.arange(3)
    logits = tuple(torch.from_numpy(table).float().log() for table in tables)
    return PairedBatch(sequence, index, index, of_teachers=(None,), given_logits=logits)


def test_a_table_alone_teaches_documents_and_each_of_their_pages():
    student, table = network(0), predictions("abc")
    config = DistillConfig(alpha=0.3, page_alpha=0.6, temperature=2.0, page_loss=0.5)
    batch = batch_with(table)
    parts = DistillationLoss(config, DocumentTeacher([]), document_outputs)(student, batch, 0.0)
    states = document_outputs(student, batch, ["logits", "page_logits"])
    of_page = torch.tensor([0, 0, 1, 2, 2, 2])
    targets = softened(torch.from_numpy(table).float(), 2)
    document = 0.7 * F.cross_entropy(states["logits"], batch.labels) + 0.3 * kl(states["logits"], targets, 2)
    pages = states["page_logits"]
    page = 0.4 * F.cross_entropy(pages, of_page) + 0.6 * kl(pages, targets[of_page], 2)
    torch.testing.assert_close(parts["loss"], document + 0.5 * page)


def test_models_and_tables_are_one_ensemble():
    model, tables = network(1), [predictions("abc", seed) for seed in (1, 2)]
    batch = batch_with(*tables)
    found = DocumentTeacher([model])(batch, ["logits", "page_logits"])
    given = [document_outputs(model, batch, ["logits"])["logits"].detach().softmax(1), *map(torch.from_numpy, tables)]
    expected = torch.stack([softened(member.double(), 3) for member in given]).mean(0)
    torch.testing.assert_close((ensemble_logits(found, "logits", 3.0) / 3).softmax(1).double(), expected)
    assert set(DocumentTeacher([model])(batch, ["logits", "pages"])) == {"0.logits", "0.pages", "1.logits", "2.logits"}


# --- the batches


def test_every_document_has_its_own_row_and_documents_without_labels_their_own_pages(data, tmp_path):
    further = []
    for number in range(3):
        (tmp_path / f"{number}.pdf").write_bytes(classed_pdf("bars", 3, 5.0 * number + 1))
        further.append(str(tmp_path / f"{number}.pdf"))
    paths = [*data.paths, *further]
    values = predictions(paths)
    table = read_probabilities(write(tmp_path / "table.csv", paths, values), CLASSES, data.paths)
    files = render_all(data.paths, CONFIG.rendering, PROCESS, workers=0)
    rows = {files[path].stem: row for path, row in zip(data.paths, values[: len(data)], strict=True)}

    def batches(tables):
        recipe = replace(RECIPE, mix_pages=1.0)
        asked = {"unlabelled": further, "tables": tables, "workers": 0}
        return paired_batches(data, files, CONFIG, [CONFIG], recipe, PROCESS, **asked)[0]

    made = batches([table])
    for batch in made:
        names = [made.labelled.dataset.documents[i].file.stem for i in batch.index]
        np.testing.assert_allclose(batch.given_logits[0].exp(), [rows[name] for name in names], rtol=1e-4)
        other = batch.unlabelled
        np.testing.assert_allclose(other.given_logits[0].exp(), values[len(data) :][other.index], rtol=1e-4)
        moved = batch.to("meta")
        assert moved.given_logits[0].device.type == moved.unlabelled.given_logits[0].device.type == "meta"
    labelled, unlabelled = made.labelled.dataset, made.unlabelled.dataset
    assert all(labelled.partner(0, i) is not None for i in range(len(labelled)))
    assert all(unlabelled.partner(0, i) is None for i in range(len(unlabelled)))
    mixed = batches([]).unlabelled.dataset
    assert all(mixed.partner(0, i) is not None for i in range(len(mixed)))


# --- end to end


def test_a_student_learns_from_a_table_alone(data, tmp_path):
    """The table takes every class for the next one, and labels have no weight."""
    values = np.full((len(data), 3), 0.02)
    values[np.arange(len(data)), (np.array(data.labels) + 1) % 3] = 0.96
    write(tmp_path / "table.csv", data.paths, values)
    still = Augmentation(shift=0.03, scale=0.05, ink=0.2, scan=0)
    recipe = replace(RECIPE, budget=40, ema=0.8, augmentation=still, train=TrainSettings(epochs=15, lr=3e-3))
    done = distil(data, tmp_path / "out", tmp_path / "table.csv", recipe=recipe, config=DistillConfig(alpha=1.0))
    shifted = replace(data, labels=tuple((label + 1) % 3 for label in data.labels))
    found = compare_accuracy(done.student, shifted)
    assert found > 0.8


def compare_accuracy(student, data):
    from docvit.evaluation.compare import compare

    return compare({"student": student}, data, device="cpu", workers=0).models["student"].quality.accuracy


def test_tables_join_a_model_and_its_cache_stays_valid(data, tmp_path):
    teacher = build_model(replace(RECIPE, train=TrainSettings(seed=5)), CLASSES)
    files = [write(tmp_path / f"{seed}.csv", data.paths, predictions(data.paths, seed)) for seed in (1, 2)]
    cached = {"teacher": teacher, "teacher_cache": tmp_path / "cached"}
    one = distil(data, tmp_path / "one", files[:1], **cached, valid=data)
    assert set(one.comparison.models) == {"teacher", "student"}
    calls = []
    teacher.register_forward_pre_hook(lambda *_: calls.append(1))
    two = distil(data, tmp_path / "two", files, **cached)
    assert calls == []
    live = distil(data, tmp_path / "live", files, teacher=teacher)
    states = [done.student.state_dict() for done in (one, two, live)]
    assert all(torch.equal(states[1][name], states[2][name]) for name in states[1])
    assert not all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def test_a_run_is_not_resumed_with_other_probabilities(data, tmp_path):
    first, second = (write(tmp_path / f"{s}.csv", data.paths, predictions(data.paths, s)) for s in (1, 2))
    done = distil(data, tmp_path / "out", first, valid=data)
    assert set(done.comparison.models) == {"student"}
    with pytest.raises(TrainingError, match="teacher probabilities 1 was"):
        distil(data, tmp_path / "out", second, resume=True)
    distil(data, tmp_path / "out", first, resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"teacher": "self"}, "give no other teacher"),
        ({"config": DistillConfig(simkd=True), "teacher": "model"}, "no part in it"),
        ({"config": DistillConfig(features={"pages": 1.0})}, "taken from one teacher"),
        ({"config": DistillConfig(consistency=1.0)}, "give 'self' as the teacher"),
        ({"teacher_cache": "cached"}, "nothing is cached"),
    ],
)
def test_what_cannot_be_had_together(data, tmp_path, options, words):
    if options.get("teacher") == "model":
        options = options | {"teacher": build_model(RECIPE, CLASSES)}
    table = write(tmp_path / "table.csv", data.paths, predictions(data.paths))
    with pytest.raises(DistillationError, match=words):
        distil(data, tmp_path / "out", table, **options)
    assert not (tmp_path / "out").exists()


def test_documents_without_labels_need_rows_too(data, tmp_path):
    (tmp_path / "new.pdf").write_bytes(classed_pdf("bars", 2, 3.0))
    table = write(tmp_path / "table.csv", data.paths, predictions(data.paths))
    with pytest.raises(DataError, match=r"no row for .*new\.pdf"):
        distil(data, tmp_path / "out", table, unlabelled=[str(tmp_path / "new.pdf")])
    assert not (tmp_path / "out").exists()


def test_the_command_needs_a_teacher_of_either_kind(command, corpus, tmp_path):
    quick = ["--epochs", 1, "--budget", 400, "--page-size", 64, "--device", "cpu", "--workers", 0]
    line = ["kd", "distill", corpus, *quick, "--output", tmp_path / "out"]
    code, _, err = command(cli.main, *line)
    assert code == 2
    assert "there is no teacher" in err
    paths = read_labelled(corpus).paths
    table = write(tmp_path / "table.csv", paths, predictions(paths))
    code, out, err = command(cli.main, *line, "--teacher-probabilities", table, "--words", 64)
    assert (code, err) == (0, "")
    assert "soft_loss" in out
    assert DocViT.from_pretrained(str(tmp_path / "out")).config.words == 64
