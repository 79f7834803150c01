"""Pre-training runs: they resume exactly, leave out what cannot be read, and training starts from the result."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, ENCRYPTED, TINY, worded_pdf
from PIL import Image
from safetensors.torch import load_file

from docvit.data.augment import Augmentation
from docvit.data.labels import DataError, read_labelled
from docvit.data.unlabelled import find_unlabelled
from docvit.documents.cache import PageCache, default_cache
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.training import masked as pretrain
from docvit.training.loop import CHECKPOINT, TrainingError, TrainSettings
from docvit.training.masked import PretrainRecipe, pretrain_documents
from docvit.training.masked_model import reconstruction_loss
from docvit.training.recipe import Recipe, build_model
from docvit.training.run_folder import read_recipe, write_recipe
from docvit.training.supervised import train_documents
from docvit.training.text import count_words

RECIPE = PretrainRecipe(
    model="docvit_small_patch16",
    settings=TINY | {"drop_path": 0.2, "grid": [4, 4]},  # as JSON has it
    budget=40,
    augmentation=Augmentation(scan=0.0),
    train=TrainSettings(epochs=3, lr=3e-3, bf16=False),
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def run(paths, folder, recipe=RECIPE, **options):
    return pretrain_documents(paths, folder, recipe, device="cpu", workers=0, **options)


@pytest.fixture(scope="module")
def paths(corpus):
    return [path for path in find_unlabelled(corpus) if path.endswith(("0.pdf", "1.pdf"))]


@pytest.fixture(scope="module")
def pretrained(paths, tmp_path_factory):
    """The folder of an uninterrupted run under RECIPE."""
    folder = tmp_path_factory.mktemp("pretrained")
    run(paths, folder)
    return folder


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns(paths, tmp_path):
    recipe = replace(RECIPE, mask=0.5, target="ink", budget=100, train=replace(RECIPE.train, epochs=10, lr=1e-2))
    _, history = run(paths, tmp_path, recipe)
    first, last = np.array([record["loss"] for record in history]).reshape(-1, 5).mean(1)
    assert last < 0.9 < first  # predicting the mean costs 1


def test_it_writes_a_model_folder(paths, tmp_path):
    recipe = replace(RECIPE, train=replace(RECIPE.train, epochs=1))
    encoder, history = run(paths, tmp_path, recipe)
    assert len(history) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        CHECKPOINT, "config.json", "curves.png", "metrics.csv", "model.safetensors", "recipe.json",
    ]  # fmt: skip
    saved = DocViT.from_pretrained(tmp_path)
    assert (saved.num_classes, saved.config.classes) == (0, ())
    assert_same_weights(saved.state_dict(), encoder.state_dict())
    assert not encoder.training
    assert read_recipe(tmp_path, PretrainRecipe) == recipe


@pytest.mark.parametrize("step", [2, 8])
def test_resumed_equals_uninterrupted_to_the_bit(paths, pretrained, tmp_path, monkeypatch, step):
    original = reconstruction_loss

    def interrupting(*weights):
        inner, calls = original(*weights), iter(range(1, 10**6))

        def loss(model, batch, progress):
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(model, batch, progress)

        return loss

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "reconstruction_loss", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(paths, tmp_path)
    assert (tmp_path / CHECKPOINT).is_file()
    run(paths, tmp_path, PretrainRecipe(), resume=True)  # under the run's own recipe
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path, pretrained))
    assert_same_weights(one, two)
    rows = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (tmp_path, pretrained)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert len(rows[0]) == 3


def test_training_starts_from_the_pretrained_weights(pretrained, corpus, tmp_path):
    recipe = Recipe(init=str(pretrained), ema=0.0, budget=200, train=TrainSettings(epochs=1, lr=0.0))
    model, _ = train_documents(read_labelled(corpus), tmp_path, recipe, device="cpu", workers=0)
    start = load_file(pretrained / "model.safetensors")
    trained = load_file(tmp_path / "model.safetensors")
    assert {name for name in trained if name not in start} == {"head.weight", "head.bias"}
    assert all(torch.equal(trained[name], value) for name, value in start.items())  # at a learning rate of 0
    assert model.config.classes == CLASSES
    assert not torch.equal(start["cls_token"], build_model(Recipe(settings=TINY), CLASSES).cls_token)


def test_training_may_start_under_other_settings(pretrained):
    changed = {"positions": "page-independent", "scopes": "page", "grid": (6, 6), "page_size": 96}
    start = load_file(pretrained / "model.safetensors")
    model = build_model(Recipe(init=str(pretrained), settings=changed), CLASSES)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, start["blocks.1.mlp.fc1.weight"])
    corners = torch.tensor([0, -1])
    torch.testing.assert_close(
        model.positions.spatial[corners][:, corners], start["positions.spatial"][corners][:, corners]
    )


def test_it_may_start_from_a_trained_model(paths, tmp_path):
    config = DocViTConfig(**TINY | {"num_registers": 1, "num_classes": 3, "classes": CLASSES})
    DocViT(config).save_pretrained(str(tmp_path / "trained"))
    recipe = replace(RECIPE, init=str(tmp_path / "trained"), train=replace(RECIPE.train, epochs=1, lr=0.0))
    run(paths, tmp_path / "out", recipe)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "trained"))
    assert set(two) - set(one) == {"head.weight", "head.bias"}
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_run_is_neither_overwritten_nor_resumed(paths, pretrained, tmp_path):
    before = {p: p.read_bytes() for p in pretrained.iterdir()}
    with pytest.raises(TrainingError, match="already holds a run"):
        run(paths, pretrained)
    write_recipe(tmp_path / "train", Recipe())
    with pytest.raises(TrainingError, match="of another kind of run"):
        run(paths, tmp_path / "train", resume=True)
    with pytest.raises(TrainingError, match="other data"):
        run(paths[:2], pretrained, resume=True)
    with pytest.raises(TrainingError, match="no run to resume"):
        run(paths, tmp_path, resume=True)
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mask": 0.0}, "between 0 and 1"),
        ({"mask": 1.0}, "between"),
        ({"target": "x"}, "pixels"),
        ({"word_loss": -1.0}, "at least 0"),
    ],
)
def test_a_recipe_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        PretrainRecipe(**settings)


def test_an_encoder_that_reads_words_predicts_them_and_keeps_their_frequencies(tmp_path):
    paths = []
    for kind in CLASSES:
        (tmp_path / f"{kind}.pdf").write_bytes(worded_pdf(kind, 0))
        paths.append(str(tmp_path / f"{kind}.pdf"))
    one = replace(RECIPE.train, epochs=1)
    recipe = replace(RECIPE, settings=TINY | {"words": 64}, word_loss=0.25, train=one)
    encoder, (record,) = run([*paths, paths[0]], tmp_path / "out", recipe)
    assert record["loss"] == pytest.approx(record["patch_loss"] + 0.25 * record["word_loss"], rel=1e-4)
    expected = build_model(Recipe(settings=TINY | {"words": 64}), CLASSES)
    files, _ = PageCache(default_cache(), encoder.config.rendering, words=True).prepare(paths, workers=0)
    count_words(expected, files.values())
    assert torch.equal(encoder.words.idf, expected.words.idf)
    assert len(expected.words.idf.unique()) > 1
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["words.idf"], expected.words.idf)
    # a training that begins there counts no more
    count_words(encoder, [*files.values()][:1])
    assert torch.equal(encoder.words.idf, expected.words.idf)


# --- documents ---


def test_unreadable_documents_are_left_out_counted_and_listed(corpus, paths, pretrained, tmp_path, caplog):
    shutil.copytree(corpus, tmp_path / "data", ignore=shutil.ignore_patterns("*[23].pdf"))
    (tmp_path / "data" / "empty.pdf").touch()
    (tmp_path / "data" / "bars" / "page.pdf").write_bytes(b"<html>")
    shutil.copy(paths[0], tmp_path / "data" / "copy.pdf")
    with caplog.at_level(logging.WARNING):
        run(find_unlabelled(tmp_path / "data"), tmp_path / "out")
    assert "2 of 9 documents are left out" in caplog.text
    assert f"Empty: {tmp_path}/data/empty.pdf" in caplog.text
    assert f"Unreadable: {tmp_path}/data/bars/page.pdf" in caplog.text
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pretrained))
    assert_same_weights(one, two)  # neither they nor the copy change anything


def test_a_password_opens_documents(tmp_path):
    (tmp_path / "locked.pdf").write_bytes(ENCRYPTED)
    once = replace(RECIPE, train=replace(RECIPE.train, epochs=1))
    reading = {"cache": tmp_path / "cache", "password": "secret"}
    run([str(tmp_path / "locked.pdf")], tmp_path / "out", once, **reading)
    with pytest.raises(DataError, match="Encrypted"):
        run([str(tmp_path / "locked.pdf")], tmp_path / "other", once, cache=tmp_path / "empty")


def test_no_readable_document_at_all(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / "data" / name).touch()
    with pytest.raises(DataError) as raised:
        run(find_unlabelled(tmp_path / "data"), tmp_path / "out")
    assert len(raised.value.problems) == 2
    with pytest.raises(DataError, match="there are none"):
        run([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_documents_are_found_as_training_finds_them_and_deeper(corpus, tmp_path):
    assert sorted(find_unlabelled(corpus)) == sorted(read_labelled(corpus).paths)
    picture = Image.new("L", (20, 20))
    for name in ("scans/a.png", "scans/b.png", "deep/er/p1.png", "deep/er/p2.png", "c.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    names = {os.path.relpath(p, tmp_path) for p in find_unlabelled(tmp_path)}
    assert names == {"scans/a.png", "scans/b.png", "deep/er", "c.pdf"}
    assert [os.path.basename(p) for p in find_unlabelled(tmp_path / "scans")] == ["a.png", "b.png"]


def test_a_csv_needs_no_labels(corpus, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"path,note\n{corpus}/bars/bars0.pdf,x\ngone.pdf,y\n,\n")
    assert find_unlabelled(table) == [f"{corpus}/bars/bars0.pdf", f"{tmp_path}/gone.pdf"]
    table.write_text("file\nx.pdf\n")
    with pytest.raises(DataError, match="missing column: path"):
        find_unlabelled(table)
    with pytest.raises(DataError, match="neither a folder nor a CSV"):
        find_unlabelled(tmp_path / "nowhere")


# --- the command ---


def test_the_command_pretrains_and_train_goes_on_from_there(docvit, pretrained, corpus, tmp_path):
    common = ("--epochs", 1, "--budget", 60, "--device", "cpu", "--workers", 0)
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--init", pretrained, "--mask", 0.6, "--target", "pixels", "--max-pages", 2)
    code, out, _ = docvit("pretrain", corpus, "--output", first, *options, *common)
    assert code == 0
    assert out.startswith(f"{first}: epoch 1")
    recipe = read_recipe(first, PretrainRecipe)
    assert (recipe.mask, recipe.target, recipe.max_pages, recipe.train.epochs) == (0.6, "pixels", 2, 1)
    assert recipe.train.weight_decay == PretrainRecipe.train.weight_decay
    assert docvit("train", corpus, "--init", first, "--output", second, *common)[0] == 0
    assert json.loads((second / "config.json").read_text())["embed_dim"] == TINY["embed_dim"]
    code, _, err = docvit("pretrain", corpus, "--output", first, "--resume", "--mask", 0.5, "--epochs", 1)
    assert code == 2
    assert "--mask was 0.6" in err
    assert docvit("pretrain", corpus, "--output", first, "--resume", "--mask", 0.6, "--device", "cpu")[0] == 0
    code, _, err = docvit("classify", corpus, "--model", first)
    assert code == 2
    assert "no classes" in err


# --- several processes ---


def _share(rank, paths, output):
    torch.set_num_threads(1)
    encoder, _ = run(paths, output, replace(RECIPE, settings=TINY | {"stem": "ink"}))
    torch.save(encoder.cls_token, output / f"rank{rank}.pt")


def test_two_processes_end_with_one_model(paths, tmp_path, in_two_processes):
    in_two_processes(_share, paths, tmp_path)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one, load_file(tmp_path / "model.safetensors")["cls_token"])
