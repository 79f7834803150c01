"""Distilling documents from end to end: the same views, exact caches, exact resumption, plain students."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, ENCRYPTED, TINY, classed_pdf
from safetensors.torch import load_file

from docvit.data.augment import Augmentation
from docvit.data.labels import LabelledDocuments, read_labelled
from docvit.evaluation.compare import compare
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError
from docvit.training import loop as train
from docvit.training.loop import CHECKPOINT, TrainingError, TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.supervised import train_documents
from kd import cli
from kd.config import DistillationError, DistillConfig
from kd.distill import FINE_TUNING, SETTINGS
from kd.documents import run as documents
from kd.documents.run import distill_documents

# stochastic depth and dropped patches, so that a run that draws other random numbers ends elsewhere
RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY | {"drop_path": 0.2},
    budget=40,
    patch_dropout=0.3,
    ema=0.9,
    train=TrainSettings(epochs=2, lr=3e-3),
)
OTHER = TINY | {"embed_dim": 48, "depth": 3, "scopes": "alternate:2", "positions": "page-independent"}
COARSE = OTHER | {"patch_size": 32, "grid": (2, 2), "page_size": 128, "in_chans": 3}


@pytest.fixture(scope="module")
def data(corpus):
    """Two documents per class, of two and of three pages: three batches per epoch."""
    return read_labelled(corpus).subset([0, 1, 4, 5, 8, 9])


def model(settings=OTHER, seed=5, classes=CLASSES):
    return build_model(replace(RECIPE, settings=settings, train=TrainSettings(seed=seed)), classes)


def distil(teacher, data, folder, config=DistillConfig(), recipe=RECIPE, **options):
    return distill_documents(recipe, teacher, data, folder, config, device="cpu", workers=0, **options)


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_labels_alone_give_the_student_of_a_training_without_teachers_to_the_bit(data, tmp_path):
    alone, _ = train_documents(data, tmp_path / "alone", RECIPE, device="cpu", workers=0)
    done = distil(model(), data, tmp_path / "labels", DistillConfig(alpha=0.0))
    assert_same_weights(done.student.state_dict(), alone.state_dict())


def test_a_student_learns_from_the_teachers_outputs_alone(trained, data, tmp_path):
    still = Augmentation(shift=0.03, scale=0.05, ink=0.2, scan=0)
    recipe = replace(RECIPE, settings=TINY, augmentation=still, patch_dropout=0.0, ema=0.8)
    recipe = replace(recipe, train=TrainSettings(epochs=12, lr=3e-3))
    done = distil(str(trained), data, tmp_path, DistillConfig(alpha=1.0, features={"pages": 1.0}), recipe, valid=data)
    losses = [record["soft_loss"] for record in done.history]
    assert losses[-1] < losses[0]
    assert done.history[-1]["valid_accuracy"] > 0.6  # chance is 0.33, and the labels have no weight
    figures = json.loads((tmp_path / "comparison.json").read_text())["models"]
    assert set(figures) == {"teacher", "student"}
    assert figures["teacher"]["accuracy"] == 1
    assert figures["student"]["accuracy"] == pytest.approx(done.history[-1]["valid_accuracy"])
    assert "| student |" in (tmp_path / "comparison.md").read_text().replace("  ", " ")
    assert (tmp_path / "comparison.png").is_file()


@pytest.mark.parametrize("settings", [OTHER, COARSE])
def test_cached_equals_live_to_the_bit(data, tmp_path, settings, monkeypatch):
    teacher, config = model(settings), DistillConfig(features={"pages": 1.0})
    live = distil(teacher, data, tmp_path / "live", config).student.state_dict()
    cached = {"teacher_cache": tmp_path / "cached"}
    assert_same_weights(distil(teacher, data, tmp_path / "first", config, **cached).student.state_dict(), live)
    calls = []
    monkeypatch.setattr(teacher, "forward_intermediates", lambda *_: calls.append(1))
    assert_same_weights(distil(teacher, data, tmp_path / "second", config, **cached).student.state_dict(), live)
    assert calls == []


def test_a_cache_of_another_teacher_or_of_other_views_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "has_fast_bf16", lambda _: True)
    short = replace(RECIPE, train=replace(RECIPE.train, epochs=1))
    cached = {"teacher_cache": tmp_path / "cached"}
    distil(model(), data, tmp_path / "first", recipe=short, **cached)
    # another mixture and another temperature need nothing else
    distil(model(), data, tmp_path / "mixed", DistillConfig(alpha=0.9, temperature=2.0), short, **cached)
    seeded = replace(short, train=replace(short.train, seed=1))
    for teacher, documents_, recipe, words in [
        (model(seed=6), data, short, "teachers 1 was '[0-9a-f]{64}', not"),
        (model(), data, seeded, "data labelled seed was 0, not 1"),
        (model(), data, replace(short, patch_dropout=0.0), "view patch_dropout was 0.3, not 0.0"),
        (model(), data.subset(range(5)), short, "data labelled documents was 6, not 5"),
        (model(), data, replace(short, budget=90), "budget was 40, not 90"),
        (model(), data, replace(short, balanced=False), "balanced was True, not False"),
        (model(), data, replace(short, train=replace(short.train, bf16=False)), "bf16 was True, not False"),
        (model(), data, replace(short, mix_pages=0.0), "view mix_pages was 0.5, not 0.0"),
        (model(), regrouped(data), short, "data labelled mixed was '[0-9a-f]{64}', not"),
        (model(), data.subset([*range(5), 0]), short, "data labelled content was '[0-9a-f]{64}', not"),
    ]:
        with pytest.raises(TrainingError, match=words):
            distil(teacher, documents_, tmp_path / "second", recipe=recipe, **cached)
        assert not (tmp_path / "second").exists()
    # features need outputs that it does not hold
    with pytest.raises(TrainingError, match="states was"):
        distil(model(), data, tmp_path / "second", DistillConfig(features={"pages": 1.0}), short, **cached)


def regrouped(data):
    """The same documents, two by two from one source."""
    return replace(data, groups=tuple(str(i // 2) for i in range(len(data))))


def test_what_is_saved_is_a_docvit_like_any_other(data, tmp_path):
    for name, config in [("features", DistillConfig(features={"pages": 1.0})), ("simkd", DistillConfig(simkd=True))]:
        student = distil(model(COARSE), data, tmp_path / name, config).student
        saved = weights(tmp_path / name)
        assert saved.keys() == DocViT(student.config).state_dict().keys()
        assert not any("projection" in key or "classifier" in key for key in saved)
        loaded = DocViT.from_pretrained(str(tmp_path / name))
        assert_same_weights(loaded.state_dict(), student.state_dict())


# --- interrupted and resumed ---

RUNS = {  # config; further options; the step in which the run is stopped, from its beginning or its end
    "distilling": (DistillConfig(features={"document": 1.0}, fine_tune=1), {}, 2),
    "cached": (DistillConfig(features={"document": 1.0}), {"teacher_cache": "cached"}, 2),
    "fine-tuning": (DistillConfig(simkd=True, fine_tune=2), {}, -2),
    "mean teacher": (DistillConfig(alpha=0.2, consistency=1.0), {"unlabelled": 5}, -2),
}


def counting(monkeypatch, stop=None):
    """A list that grows with every step of a run, whichever stage it is in; Ctrl-C within the `stop`-th."""
    original, done = train._Run._step, []

    def step(self, batch):
        done.append(1)
        if len(done) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(train._Run, "_step", step)
    return done


@pytest.mark.parametrize("run", RUNS)
def test_resumed_equals_uninterrupted_to_the_bit(data, tmp_path, monkeypatch, run):
    config, options, stop = RUNS[run]
    if "unlabelled" in options:
        options = {"unlabelled": data.paths[: options["unlabelled"]]}
    teacher = "self" if config.consistency else model()
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        steps = counting(patch)
        whole = distil(teacher, data, tmp_path / "whole", config, **options)
    with monkeypatch.context() as patch:
        counting(patch, stop % len(steps))
        with pytest.raises(KeyboardInterrupt):
            distil(teacher, data, tmp_path / "cut", config, **options)
    assert (tmp_path / "cut" / CHECKPOINT).is_file()
    # under the run's own recipe and config
    resumed = distil(teacher, data, tmp_path / "cut", DistillConfig(alpha=0.9), Recipe(), resume=True, **options)
    assert_same_weights(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert timeless(resumed.history) == timeless(whole.history)
    assert timeless(resumed.fine_tuning) == timeless(whole.fine_tuning)


def timeless(history):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


def test_a_run_is_not_resumed_with_another_teacher_or_other_data(data, tmp_path):
    short = replace(RECIPE, train=replace(RECIPE.train, epochs=1))
    distil(model(), data, tmp_path, recipe=short)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for teacher, documents_, words in [
        (model(seed=6), data, "teachers 1 was"),
        ([model(), model()], data, "teachers was"),
        (model(), data.subset(range(5)), "data labelled documents was 6, not 5"),
    ]:
        with pytest.raises(TrainingError, match=words):
            distil(teacher, documents_, tmp_path, resume=True)
    with pytest.raises(TrainingError, match="already holds a run"):
        distil(model(), data, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    (tmp_path / SETTINGS).unlink()
    with pytest.raises(TrainingError, match="there is no run to resume"):
        distil(model(), data, tmp_path, resume=True)


def test_fine_tuning_begins_with_what_was_distilled(data, tmp_path):
    one = distil(model(), data, tmp_path / "one")
    two = distil(model(), data, tmp_path / "two", DistillConfig(fine_tune=1))
    assert timeless(two.history) == timeless(one.history)
    assert two.fine_tuning[0]["lr"] == pytest.approx(RECIPE.train.lr / 10)
    assert "soft_loss" not in two.fine_tuning[0]
    assert (tmp_path / "two" / FINE_TUNING / CHECKPOINT).is_file()
    assert_same_weights(weights(tmp_path / "two"), two.student.state_dict())
    assert not torch.equal(one.student.head.weight, two.student.head.weight)


# --- several teachers, and none ---


def test_the_average_is_compared_and_not_the_last_weights(data, tmp_path):
    """Numbers of the kept student, measured anew, are those of the comparison; its last weights have others."""
    short = replace(RECIPE, ema=0.99, train=TrainSettings(epochs=2, lr=1e-2))
    done = distil("self", data, tmp_path, recipe=short, valid=data)
    assert set(done.comparison.models) == {"last weights", "student"}
    again = compare({"student": DocViT.from_pretrained(str(tmp_path))}, data, device="cpu", workers=0)
    found = done.comparison.as_dict()["models"]
    assert found["student"]["ece"] == pytest.approx(again.as_dict()["models"]["student"]["ece"])
    assert found["student"]["ece"] != pytest.approx(found["last weights"]["ece"])


def test_twice_the_same_teacher_is_that_teacher(data, tmp_path):
    recipe = replace(RECIPE, train=replace(RECIPE.train, epochs=1))
    one = distil(model(), data, tmp_path / "one", recipe=recipe)
    two = distil([model(), model()], data, tmp_path / "two", recipe=recipe)
    for name, value in one.student.state_dict().items():
        torch.testing.assert_close(value, two.student.state_dict()[name], rtol=1e-3, atol=1e-4)
    mixed = distil([model(), model(COARSE)], data, tmp_path / "mixed", recipe=recipe, valid=data)
    assert set(mixed.comparison.models) == {"teacher 1", "teacher 2", "student"}


def test_a_mean_teacher_takes_part_in_documents_without_labels(data, tmp_path, caplog):
    (tmp_path / "bad.pdf").write_bytes(b"<html>")
    (tmp_path / "new.pdf").write_bytes(classed_pdf("bars", 2, 3.0))
    further = [str(tmp_path / name) for name in ("bad.pdf", "new.pdf")]
    done = distil("self", data, tmp_path / "out", DistillConfig(consistency=1.0), unlabelled=further)
    assert len(done.left_out) == 1
    assert done.left_out[0] in caplog.text
    assert all(record["unlabelled_loss"] > 0 for record in done.history)
    assert all(record["consistency_loss"] > 0 for record in done.history)
    assert_same_weights(weights(tmp_path / "out"), done.student.state_dict())


def test_a_password_opens_documents_of_all_kinds(data, tmp_path):
    paths = [str(tmp_path / name) for name in ("labelled.pdf", "unlabelled.pdf", "held-out.pdf")]
    for number, path in enumerate(paths):
        Path(path).write_bytes(ENCRYPTED + b"%" * number)  # no copies of each other
    locked, held_out = (LabelledDocuments((path,), (0,), CLASSES) for path in paths[::2])
    more = LabelledDocuments(data.paths + locked.paths, data.labels + locked.labels, CLASSES)
    once = replace(RECIPE, train=replace(RECIPE.train, epochs=1))
    reading = {"cache": tmp_path / "cache", "password": "secret"}
    done = distil(model(COARSE), more, tmp_path / "out", recipe=once, valid=held_out, unlabelled=paths[1:2], **reading)
    assert done.left_out == ()
    assert (done.comparison.documents, done.comparison.errors) == (1, ())


# --- what does not fit ---


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("bars", "blocks", "forms"), "it lacks text; it has also forms"),
        (("bars", "blocks", "forms", "text"), "it has also forms"),
        (("text", "bars", "blocks"), "in the order text, bars, blocks, the data in the order bars, blocks, text"),
        ((), "have no names"),
    ],
)
def test_a_teacher_of_other_classes_is_refused_with_what_differs(data, tmp_path, classes, words):
    with pytest.raises(DistillationError, match=words):
        distil([model(), model(classes=classes)], data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("teacher", "config", "options", "words"),
    [
        ("self", DistillConfig(), {"recipe": replace(RECIPE, ema=0.0)}, "needs a moving average"),
        ("self", DistillConfig(), {"teacher_cache": "cached"}, "cannot be cached"),
        ("self", DistillConfig(simkd=True), {}, "other than the student itself"),
        (["self", "self"], DistillConfig(), {}, "give no other teacher"),
        ([], DistillConfig(), {}, "no teacher"),
        (OTHER, DistillConfig(consistency=1.0), {}, "give 'self' as the teacher"),
        (COARSE, DistillConfig(features={"blocks.0": 1.0}), {}, "other tokens .*patch_size 32 and 16"),
        (OTHER, DistillConfig(features={"odd": 1.0}), {}, "no state 'odd'"),
        (OTHER, DistillConfig(alpha=0.0), {"unlabelled": ["x.pdf"]}, "have no loss"),
    ],
)
def test_what_cannot_be_had_together_is_cached(data, tmp_path, teacher, config, options, words):
    with pytest.raises(DistillationError, match=words):
        distil(model(teacher) if isinstance(teacher, dict) else teacher, data, tmp_path / "out", config, **options)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_none(data, tmp_path):
    with pytest.raises(ModelError, match="not a model folder"):
        distil(str(tmp_path), data, tmp_path / "out")


# --- several processes ---


def _distil_share(rank, corpus, output):
    torch.set_num_threads(1)
    still = replace(RECIPE, settings=TINY)
    done = distil(model(), read_labelled(corpus), output, DistillConfig(features={"pages": 1.0}), still)
    torch.save(done.student.state_dict(), output / f"rank{rank}.pt")


def test_two_processes_end_with_one_student(corpus, tmp_path, in_two_processes):
    in_two_processes(_distil_share, corpus, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert_same_weights(first, second)
    assert_same_weights(first, weights(tmp_path))


# --- the command ---


@pytest.fixture
def kd(command, corpus):
    """`kd(...)` gives (exit code, standard output, standard error) of `kd distill CORPUS ...`."""
    quick = ["--epochs", 1, "--budget", 400, "--page-size", 64, "--device", "cpu", "--workers", 0]
    return partial(command, cli.main, "kd", "distill", corpus, *quick)


def test_the_command(kd, trained, corpus, tmp_path):
    asked = ["--teacher", trained, "--output", tmp_path / "out", "--valid", corpus]
    features = ["--feature", "pages=0.5", "--feature", "document=1", "--alpha", "0.7"]
    code, out, err = kd(*asked, *features)
    assert (code, err) == (0, "")
    assert "soft_loss" in out
    assert "| accuracy" in out
    config = documents.read_config(tmp_path / "out")
    terms = DistillConfig(alpha=0.7, features={"pages": 0.5, "document": 1.0}, ramp_up=0.0)
    assert config == replace(terms, page_loss=Recipe.page_loss, label_smoothing=Recipe.label_smoothing)
    assert DocViT.from_pretrained(str(tmp_path / "out")).config.stem == "ink"
    assert kd(*asked, "--resume")[0] == 0
    code, _, err = kd(*asked, "--resume", "--alpha", "0.2")
    assert code == 2
    assert "--alpha was 0.7" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher", "/nowhere"], "neither a model folder nor a hub model"),
        (["--teacher", "self", "--feature", "pages"], "write STATE=WEIGHT"),
        (["--teacher", "self", "--student", "odd"], "no variant 'odd'"),
        (["--teacher", "self", "--alpha", "2"], "alpha must lie in 0..1"),
        (["--teacher", "self", "--unlabelled", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_usage_ends_in_one_line(kd, tmp_path, arguments, words):
    code, _, err = kd(*arguments, "--output", tmp_path / "out")
    assert code == 2
    assert words in err
    assert not (tmp_path / "out").exists()


def test_labels_that_the_teacher_does_not_know(kd, data, tmp_path):
    model(classes=("bars", "forms", "text")).save_pretrained(str(tmp_path / "teacher"))
    code, _, err = kd("--teacher", tmp_path / "teacher", "--output", tmp_path / "out")
    assert code == 2
    assert "blocks" in err
