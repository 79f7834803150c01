"""Words in distillation: who sees which, from which documents they are counted, and that everything fits together."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY, worded_pdf
from safetensors.torch import load_file
from sklearn.feature_extraction.text import TfidfTransformer

from docvit.data.dataset import DocumentBatch
from docvit.data.labels import read_labelled
from docvit.data.loader import DocumentLoader
from docvit.data.metrics import report
from docvit.documents.hashing import hash_ngrams
from docvit.documents.pages import read_document
from docvit.evaluation.compare import compare
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.training import supervised
from docvit.training.distributed import Process
from docvit.training.loop import TrainingError, TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.supervised import train_documents
from kd.config import DistillConfig
from kd.documents.outputs import document_outputs
from kd.documents.paired import paired_batches
from kd.documents.run import distill_documents

BUCKETS = 64
RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY,
    budget=200,
    mix_pages=0.0,
    ema=0.9,
    train=TrainSettings(epochs=1, lr=3e-3),
)
COARSE = {"patch_size": 32, "grid": (2, 2), "page_size": 128}
PROCESS = Process(torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worded")
    for kind in CLASSES:
        (folder / kind).mkdir()
        for number in range(3):
            (folder / kind / f"{number}.pdf").write_bytes(worded_pdf(kind, number))
    return read_labelled(folder)


def model(words=0, seed=5, **settings):
    """A model whose words count from the start."""
    recipe = replace(RECIPE, settings={**TINY, **settings, "words": words}, train=TrainSettings(seed=seed))
    made = build_model(recipe, CLASSES)
    if made.words is not None:
        for layer in (made.words.to_pages, made.words.to_patches):
            torch.nn.init.normal_(layer.weight)
        made.words.set_frequencies(torch.arange(words) % 5, 9)
    return made


def recipe_of(words, **changes):
    return replace(RECIPE, settings=TINY | {"words": words}, **changes)


def distil(teacher, data, folder, recipe, config=DistillConfig(), **options):
    return distill_documents(recipe, teacher, data, folder, config, device="cpu", workers=0, **options)


@pytest.mark.parametrize("of_student", [0, BUCKETS])
@pytest.mark.parametrize("of_teacher", [0, 2 * BUCKETS])
@pytest.mark.parametrize("settings", [{}, COARSE])
def test_teachers_and_students_with_and_without_words_fit_together(data, tmp_path, of_teacher, of_student, settings):
    teacher = model(of_teacher, **settings)
    few = data.subset([0, 3, 6])
    done = distil(teacher, few, tmp_path, recipe_of(of_student), DistillConfig(features={"document": 1.0}))
    assert math.isfinite(done.history[-1]["soft_loss"])
    assert DocViT.from_pretrained(str(tmp_path)).config.words == of_student
    assert ("words.embedding.weight" in load_file(tmp_path / "model.safetensors")) == bool(of_student)


def test_labels_alone_are_a_training_with_words_without_teachers_to_the_bit(data, tmp_path):
    alone, _ = train_documents(data, tmp_path / "alone", recipe_of(BUCKETS), device="cpu", workers=0)
    done = distil(model(BUCKETS), data, tmp_path / "labels", recipe_of(BUCKETS), DistillConfig(alpha=0.0))
    one, two = alone.state_dict(), done.student.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_words_are_counted_in_all_training_documents_and_in_no_others(data, tmp_path):
    held_out = [path for path in data.paths if path.endswith("2.pdf")]
    rest = [i for i, path in enumerate(data.paths) if path not in held_out]
    new = tmp_path / "new.pdf"
    new.write_bytes(worded_pdf("text", 7))
    done = distil(
        model(), data.subset(rest), tmp_path / "out", recipe_of(BUCKETS), valid=data.only(held_out),
        unlabelled=[str(new)],
    )  # fmt: skip
    bags = []
    for path in [*(data.paths[i] for i in rest), str(new)]:
        texts = [text for page in read_document(path, words=True).words for text in page.texts]
        bags.append(np.bincount(hash_ngrams(texts)[0] % BUCKETS, minlength=BUCKETS))
    expected = TfidfTransformer().fit(np.array(bags)).idf_
    np.testing.assert_allclose(done.student.words.idf.numpy(), expected, rtol=1e-5)
    saved = load_file(tmp_path / "out" / "model.safetensors")["words.idf"]  # that of the moving average
    np.testing.assert_allclose(saved.numpy(), expected, rtol=1e-5)


# --- what each of them sees


def seen(data, student, teacher, recipe=RECIPE):
    """For one batch of all documents: paths, the hashed n-grams that the student sees of each, and the teacher."""
    configs = [DocViTConfig(**TINY | settings, num_classes=3) for settings in (student, teacher)]
    files = render_all(data.paths, configs[0].rendering, PROCESS, workers=0)
    recipe = replace(recipe, balanced=False)
    batches, _ = paired_batches(data, files, configs[0], configs[1:], recipe, PROCESS, workers=0)
    batch = next(iter(DocumentLoader(batches.labelled.dataset, budget=10**6)))
    (of_teacher,) = batch.of_teachers
    shown = [ngrams(sequence) for sequence in (batch.sequence, of_teacher or batch.sequence)]
    return [data.paths[i] for i in batch.index], *shown, of_teacher


def ngrams(sequence):
    bounds = sequence.word_bounds[sequence.page_bounds[sequence.document_bounds]].tolist()
    return [sorted(sequence.words[a:b].tolist()) for a, b in pairwise(bounds)]


def all_of(path):
    texts = [text for page in read_document(path, words=True).words for text in page.texts]
    return sorted(hash_ngrams(texts)[0].tolist())


@pytest.mark.parametrize("mix_pages", [0.0, 1.0])
def test_both_lose_the_same_words(data, mix_pages):
    recipe = replace(RECIPE, lose_words=0.4, word_dropout=0.8, mix_pages=mix_pages)
    paths, ours, theirs, apart = seen(data, {"words": 64}, {"words": 256} | COARSE, recipe)
    assert apart is not None
    assert ours == theirs
    lost = [not found for found in ours]
    assert 0 < sum(lost) < len(lost)
    if not mix_pages:
        thinned = [len(found) < len(all_of(path)) for path, found in zip(paths, ours, strict=True) if found]
        assert any(thinned)


def test_a_teacher_of_the_same_rendering_shares_the_words(data):
    *_, ours, theirs, apart = seen(data, {"words": 64}, {"words": 256, "embed_dim": 48})
    assert apart is None
    assert ours == theirs


def test_a_student_without_words_learns_from_a_teacher_that_reads_all_of_them(data):
    recipe = replace(RECIPE, lose_words=1.0, word_dropout=1.0)
    paths, ours, theirs, _ = seen(data, {"words": 0}, {"words": 64}, recipe)
    assert theirs == [all_of(path) for path in paths]
    assert not any(ours)


def test_a_teacher_without_words_sees_pixels_alone(data):
    recipe = replace(RECIPE, lose_words=0.0, word_dropout=0.0)
    paths, ours, theirs, _ = seen(data, {"words": 64}, {"words": 0}, recipe)
    assert ours == [all_of(path) for path in paths]
    assert not any(theirs)


# --- cache and comparison


def test_a_cache_of_other_words_is_refused(data, tmp_path):
    cached, teacher = {"teacher_cache": tmp_path / "cached"}, model(BUCKETS)
    distil(teacher, data, tmp_path / "first", recipe_of(BUCKETS), **cached)
    distil(teacher, data, tmp_path / "wider", recipe_of(2 * BUCKETS), **cached)  # which words are seen is the same
    for recipe, words in [
        (recipe_of(0), "view words was True, not False"),
        (recipe_of(BUCKETS, lose_words=0.1), "view lose_words was 0.3, not 0.1"),
        (recipe_of(BUCKETS, word_dropout=0.1), "view word_dropout was 0.5, not 0.1"),
    ]:
        with pytest.raises(TrainingError, match=words):
            distil(teacher, data, tmp_path / "second", recipe, **cached)


def test_words_that_are_dropped_for_nobody_do_not_make_a_cache_another(data, tmp_path):
    cached, teacher = {"teacher_cache": tmp_path / "cached"}, model(BUCKETS)
    distil(teacher, data, tmp_path / "first", recipe_of(0), **cached)
    distil(teacher, data, tmp_path / "second", recipe_of(0, lose_words=0.1, word_dropout=0.1), **cached)


def test_a_comparison_gives_words_to_the_models_that_read_them(data):
    networks = {"pixels": model().eval(), "words": model(BUCKETS).eval()}
    for network in networks.values():
        torch.nn.init.normal_(network.head.weight)
    found = compare(networks, data, device="cpu", workers=0).models
    for name, network in networks.items():
        stacks = [read_document(path, network.config.rendering, words=name == "words") for path in data.paths]
        with torch.no_grad():
            scores = network(network.pack(stacks)).softmax(1).numpy()
            blind = network(network.pack(stacks, words=False)).softmax(1).numpy()
        expected, without = (report(given, data.labels, data.classes).ece for given in (scores, blind))
        assert found[name].quality.ece == pytest.approx(expected, abs=0.01)  # in half precision
        assert (abs(expected - without) > 0.03) == (name == "words")


def test_words_that_count_directly_count_in_what_is_learnt_of_pages(data, tmp_path):
    teacher = model(BUCKETS).adapt(document_words=2).eval()
    torch.nn.init.normal_(teacher.words.of_documents.weight)
    batch = teacher.pack([read_document(path, teacher.config.rendering, words=True) for path in data.paths[:2]])
    labels = torch.zeros(2, dtype=torch.long)
    with torch.inference_mode():
        found = document_outputs(teacher, DocumentBatch(batch, labels, labels), ["page_logits"])
        expected = teacher.forward_pages(teacher.forward_features(batch))
    assert torch.equal(found["page_logits"], expected)


def test_a_student_learns_where_documents_begin(data, tmp_path):
    distil(model().eval(), data, tmp_path / "with", replace(RECIPE, packets=2.0))
    distil(model().eval(), data, tmp_path / "without", RECIPE)
    with_head, without = (DocViT.from_pretrained(tmp_path / name) for name in ("with", "without"))
    assert without.boundaries is None
    assert with_head.boundaries is not None
    assert with_head.boundaries.norm.num_batches_tracked > 0  # its weights are random until it is trained


def test_a_student_that_is_interrupted_at_its_end_has_no_random_head_and_goes_on(data, tmp_path, monkeypatch):
    recipe = replace(RECIPE, packets=1.0)
    distil(model().eval(), data, tmp_path / "whole", recipe)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "train_boundaries", interrupted)
        with pytest.raises(KeyboardInterrupt):
            distil(model().eval(), data, tmp_path / "stopped", recipe)
    assert DocViT.from_pretrained(tmp_path / "stopped").boundaries is None
    distil(model().eval(), data, tmp_path / "stopped", recipe, resume=True)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(whole[name], value) for name, value in stopped.items())
