"""From labelled documents to a model folder."""

from __future__ import annotations

import csv
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import CLASSES, TINY
from safetensors.torch import load_file

from docvit.data.dataset import DocumentDataset, View
from docvit.data.labels import DataError, LabelledDocuments, read_labelled, split_groups
from docvit.data.loader import DocumentLoader
from docvit.documents.cache import PageCache
from docvit.inference.classify import DocumentClassifier
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError
from docvit.training import supervised
from docvit.training.loop import CHECKPOINT, TrainingError, TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.run_folder import check_unused, read_recipe
from docvit.training.supervised import classification_loss, evaluate_batches, train_documents

# stochastic depth, so that a run that draws other random numbers ends elsewhere
RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY | {"drop_path": 0.2},
    budget=60,
    patch_dropout=0.3,
    page_loss=0.0,
    ema=0.9,
    train=TrainSettings(epochs=3, lr=3e-3),
)


@pytest.fixture(scope="module")
def data(corpus):
    return read_labelled(corpus)


def train(data, folder, recipe=RECIPE, **options):
    return train_documents(data, folder, recipe, device="cpu", workers=0, **options)


def weights(folder, file="model.safetensors"):
    return load_file(folder / file)


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_and_writes_a_model_folder(trained, data):
    assert sorted(p.name for p in trained.iterdir()) == [
        CHECKPOINT, "config.json", "curves.png", "metrics.csv", "model.safetensors", "recipe.json",
    ]  # fmt: skip
    with (trained / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    classifier = DocumentClassifier.from_pretrained(trained, device="cpu")
    assert classifier.classes == CLASSES
    labels = [p.label for p in classifier.predict(data.paths, workers=0)]
    assert labels == [data.classes[i] for i in data.labels]


def test_what_is_returned_is_what_is_saved(data, tmp_path):
    model, history = train(data, tmp_path, replace(RECIPE, train=TrainSettings(epochs=1)))
    assert not model.training
    assert len(history) == 1
    assert_same_weights(weights(tmp_path), model.state_dict())


def test_held_out_documents_are_evaluated_every_epoch(data, tmp_path):
    held_out = [i for i, path in enumerate(data.paths) if path.endswith("3.pdf")]
    rest = [i for i in range(len(data)) if i not in held_out]
    model, history = train(data.subset(rest), tmp_path, valid=data.subset(held_out))
    assert all(0 <= record["valid_accuracy"] <= 1 for record in history)
    classifier = DocumentClassifier(model, device="cpu")
    scores = [p.scores for p in classifier.predict([data.paths[i] for i in held_out], workers=0)]
    truth = [data.classes[data.labels[i]] for i in held_out]
    expected = -np.mean([np.log(s[c]) for s, c in zip(scores, truth, strict=True)])
    assert history[-1]["valid_loss"] == pytest.approx(expected, rel=0.02)
    hits = [max(s, key=s.get) == c for s, c in zip(scores, truth, strict=True)]
    assert history[-1]["valid_accuracy"] == pytest.approx(np.mean(hits))


# --- the loss ---


@pytest.fixture(scope="module")
def batch(data, page_cache):
    model = build_model(RECIPE, data.classes)
    files, _ = PageCache(page_cache, model.config.rendering, words=True).prepare(data.paths, workers=0)
    dataset = DocumentDataset(list(files.values()), data.labels, View(model.config.rendering))
    return next(iter(DocumentLoader(dataset, budget=10**6)))


def test_the_loss_is_smoothed_cross_entropy(batch, data):
    model = build_model(RECIPE, data.classes).eval()
    parts = classification_loss(replace(RECIPE, label_smoothing=0.1, page_loss=0.0))(model, batch, 0.0)
    logs = model(batch.sequence).log_softmax(1)
    target = F.one_hot(batch.labels, 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(parts["loss"], -(target * logs).sum(1).mean())
    hits = logs.argmax(1) == batch.labels
    assert set(parts) == {"loss", "accuracy"}
    assert float(parts["accuracy"]) == pytest.approx(float(hits.float().mean()))


def test_pages_may_be_asked_alone(batch, data):
    model = build_model(RECIPE, data.classes).eval()
    parts = classification_loss(replace(RECIPE, page_loss=0.5))(model, batch, 0.0)
    torch.testing.assert_close(parts["loss"], parts["document_loss"] + 0.5 * parts["page_loss"])
    logits = model.forward_pages(model.forward_features(batch.sequence))
    counts = batch.sequence.document_bounds.diff()
    labels = torch.repeat_interleave(batch.labels, counts)
    expected = F.cross_entropy(logits, labels, label_smoothing=RECIPE.label_smoothing)
    torch.testing.assert_close(parts["page_loss"], expected)


# --- interrupted and resumed ---


def interrupting(step):
    """`classification_loss`, and Ctrl-C within the `step`-th step."""
    original, calls = classification_loss, iter(range(1, 10**6))

    def make(recipe):
        inner = original(recipe)

        def loss(model, batch, progress):
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(model, batch, progress)

        return loss

    return make


@pytest.fixture(scope="module")
def few(data):
    """Six documents: two batches per epoch."""
    return data.subset([0, 1, 4, 5, 8, 9])


@pytest.fixture(scope="module")
def uninterrupted(few, tmp_path_factory):
    """The folder of a whole run under RECIPE, evaluated on three of the documents."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(few, folder, valid=few.subset([0, 2, 4]))
    return folder


@pytest.mark.parametrize("step", [1, 5])
def test_resumed_equals_uninterrupted_to_the_bit(few, uninterrupted, tmp_path, monkeypatch, step):
    valid = few.subset([0, 2, 4])
    with monkeypatch.context() as patch:
        patch.setattr(supervised, "classification_loss", interrupting(step))
        with pytest.raises(KeyboardInterrupt):
            train(few, tmp_path, valid=valid)
    assert (tmp_path / CHECKPOINT).is_file()
    train(few, tmp_path, Recipe(), valid=valid, resume=True)  # under the run's own recipe
    assert_same_weights(weights(tmp_path), weights(uninterrupted))
    one, two = ((folder / "metrics.csv").read_text() for folder in (tmp_path, uninterrupted))
    assert [_timeless(row) for row in csv.DictReader(one.splitlines())] == [
        _timeless(row) for row in csv.DictReader(two.splitlines())
    ]


def _timeless(row):
    return {name: value for name, value in row.items() if name != "seconds"}


def test_the_same_recipe_gives_the_same_model(data, tmp_path):
    short, other_seed = (replace(RECIPE, train=replace(RECIPE.train, epochs=1, seed=seed)) for seed in (0, 1))
    one = train(data, tmp_path / "one", short)[0].state_dict()
    torch.manual_seed(5)
    assert_same_weights(train(data, tmp_path / "two", short)[0].state_dict(), one)
    other = train(data, tmp_path / "three", other_seed)[0].state_dict()
    assert not torch.equal(other["cls_token"], one["cls_token"])


def test_the_recipe_is_read_back(data, tmp_path):
    train(data, tmp_path, replace(RECIPE, train=TrainSettings(epochs=1)))
    found = read_recipe(tmp_path)
    assert found.train == TrainSettings(epochs=1)
    assert found.augmentation == RECIPE.augmentation
    assert build_model(found, CLASSES).config == build_model(RECIPE, CLASSES).config


@pytest.mark.parametrize("content", ["{", "[]", '{"model": "x"}', '{"augmentation": {}, "train": {}, "odd": 1}'])
def test_a_damaged_recipe(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(TrainingError, match=r"recipe\.json is damaged"):
        read_recipe(tmp_path)


def test_another_run_is_neither_overwritten_nor_resumed_on_other_data(trained, data, tmp_path):
    before = {p.name: p.read_bytes() for p in trained.iterdir()}
    with pytest.raises(TrainingError, match="already holds a run"):
        train(data, trained)
    with pytest.raises(TrainingError, match=r"another model|other data"):
        train(_two_classes(data), trained, resume=True)
    with pytest.raises(TrainingError, match="other data"):
        train(data.subset(range(0, 12, 3)), trained, resume=True)
    grouped = LabelledDocuments(data.paths, data.labels, data.classes, data.paths[:1] * 2 + data.paths[2:])
    with pytest.raises(TrainingError, match="groups"):
        train(grouped, trained, resume=True)
    assert {p.name: p.read_bytes() for p in trained.iterdir()} == before
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(TrainingError, match="no run to resume"):
            train(data, folder, resume=True)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="not a folder"):
        train(data, tmp_path / "file")


@pytest.mark.parametrize("name", [CHECKPOINT, "config.json", "model.safetensors"])
def test_a_file_that_would_be_overwritten_is_named(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(TrainingError, match=rf"already holds a run \({name}\): "):
        check_unused(tmp_path)


def _two_classes(data):
    keep = [i for i, label in enumerate(data.labels) if label < 2]
    part = data.subset(keep)
    return LabelledDocuments(part.paths, part.labels, data.classes[:2])


def test_a_run_that_ended_before_its_first_checkpoint_may_begin_again(data, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    train(data, tmp_path, replace(RECIPE, train=TrainSettings(epochs=1)))
    assert read_recipe(tmp_path).train.epochs == 1


# --- errors before training starts ---


def test_all_unreadable_documents_are_named_at_once_and_nothing_is_written(tmp_path, data):
    (tmp_path / "empty.pdf").touch()
    (tmp_path / "bad.pdf").write_bytes(b"<html>")
    paths = (*data.paths, str(tmp_path / "empty.pdf"), str(tmp_path / "bad.pdf"))
    with pytest.raises(DataError) as raised:
        train(LabelledDocuments(paths, (*data.labels, 0, 0), data.classes), tmp_path / "out")
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["Empty", "Unreadable"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "error", "words"),
    [
        (replace(RECIPE, model="docvit_giant"), ValueError, "docvit_small_patch16, docvit_tiny_patch16"),
        (replace(RECIPE, settings={"positions": "odd"}), ValueError, r"page-independent, .*spatial\+page"),
        (replace(RECIPE, settings={"scopes": "odd"}), ValueError, "page, document, page-then-document:K"),
        (replace(RECIPE, init="timm:odd"), ModelError, "timm has no 'odd'"),
        (replace(RECIPE, init="/nowhere"), ModelError, "neither a model folder"),
    ],
)
def test_unknown_names_are_reported_with_the_choices(data, tmp_path, recipe, error, words):
    with pytest.raises(error, match=words):
        train(data, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there(data, tmp_path):
    with pytest.raises(ValueError, match="no device 'nonsense'"):
        train_documents(data, tmp_path / "out", RECIPE, device="nonsense")


# --- beginnings ---


def test_a_model_folder_to_start_from_keeps_its_body_and_gets_a_head_for_the_classes(trained):
    recipe = Recipe(init=str(trained), settings={"positions": "page-independent"})
    same, other = build_model(recipe, CLASSES), build_model(recipe, ("x", "y"))
    source = DocViT.from_pretrained(str(trained))
    for model in (same, other):
        assert torch.equal(model.blocks[1].attn.qkv.weight, source.blocks[1].attn.qkv.weight)
        assert model.config.positions == "page-independent"
    assert torch.equal(same.head.weight, source.head.weight)
    assert other.config.classes == ("x", "y")
    assert other.head.weight.shape == (2, 32)


def test_timm_weights_to_start_from(monkeypatch):
    source = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: source)
    model = build_model(Recipe(init="timm:vit_tiny_patch16_224", settings={"page_size": 64}), CLASSES)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    assert model.config.page_size == 64
    assert model.config.classes == CLASSES


# --- whole groups left out ---


def grouped(groups, labels=None):
    labels = labels or [i % 2 for i in range(len(groups))]
    return LabelledDocuments(tuple(map(str, range(len(groups)))), tuple(labels), ("a", "b"), tuple(groups))


def test_folds_hold_out_whole_groups_and_together_everything():
    data = grouped([g for g in "abcdef" for _ in range(4)])
    held = []
    for fold in range(3):
        train_part, held_out = split_groups(data, fold, 3)
        assert not set(train_part.groups) & set(held_out.groups)
        assert len(train_part) + len(held_out) == 24
        assert train_part.classes == held_out.classes == ("a", "b")
        held += held_out.paths
    assert sorted(held) == sorted(data.paths)


def test_too_few_groups_for_the_folds():
    with pytest.raises(DataError, match="3 folds need as many groups"):
        split_groups(grouped("abab"), 0, 3)
    with pytest.raises(DataError, match="--group-by"):
        split_groups(LabelledDocuments(("a",), (0,), ("x",)), 0, 2)


# --- several processes ---


def _train_share(rank, corpus, output):
    torch.set_num_threads(1)
    model, _ = train(read_labelled(corpus), output, replace(RECIPE, settings=TINY))
    torch.save(model.state_dict(), output / f"rank{rank}.pt")


def test_two_processes_end_with_one_model(corpus, tmp_path, in_two_processes):
    in_two_processes(_train_share, corpus, tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert_same_weights(first, second)
    assert_same_weights(first, weights(tmp_path))


def test_evaluation_is_over_all_batches(data, trained, page_cache):
    model = DocViT.from_pretrained(str(trained))
    files, _ = PageCache(page_cache, model.config.rendering, words=True).prepare(data.paths, workers=0)
    dataset = DocumentDataset(list(files.values()), data.labels, View(model.config.rendering))
    small, large = (
        evaluate_batches(model, DocumentLoader(dataset, budget=budget), CLASSES, torch.device("cpu"))
        for budget in (30, 10**6)
    )
    assert small == pytest.approx(large, rel=0.02, abs=0.01)  # bfloat16, where the machine is fast at it
    assert large["valid_accuracy"] == 1
