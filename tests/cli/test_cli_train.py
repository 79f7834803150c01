"""`docvit train` as a user meets it: what it leaves behind, what it refuses, and how it is resumed."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
import signal
import sys

import pytest
from conftest import CLASSES, ENCRYPTED, TINY
from safetensors.torch import load_file

from docvit.cli import train
from docvit.documents import cache
from docvit.training import supervised
from docvit.training.loop import CHECKPOINT
from docvit.training.run_folder import read_recipe


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A folder of an untrained tiny model, to start from: the variants are too large for here."""
    from docvit.model.config import DocViTConfig
    from docvit.model.docvit import DocViT

    folder = tmp_path_factory.mktemp("start")
    DocViT(DocViTConfig(**TINY | {"drop_path": 0.2}, num_classes=2)).save_pretrained(str(folder))
    return folder


def training(data, output, start, *rest):
    options = ("--init", start, "--device", "cpu", "--workers", 0, "--budget", 60, "--ema", 0.9)
    return ("train", data, "--output", output, *options, *rest)


@pytest.fixture
def sources(corpus, tmp_path):
    file = tmp_path / "table.csv"
    rows = [f"{corpus}/{kind}/{kind}{i}.pdf,{kind},source{i}" for kind in CLASSES for i in range(4)]
    file.write_text("\n".join(["path,label,source", *rows]) + "\n")
    return file


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_leaves_a_model_that_classifies(docvit, corpus, start, tmp_path):
    output = tmp_path / "out"
    code, out, _ = docvit(*training(corpus, output, start, "--epochs", 2, "--valid", corpus, "--lr", 0.003))
    assert code == 0
    assert out.startswith(f"{output}: epoch 2")
    assert [row["epoch"] for row in metrics(output)] == ["1", "2"]
    assert {"loss", "accuracy", "valid_accuracy", "valid_macro_f1", "valid_ece"} <= set(metrics(output)[0])
    recipe = read_recipe(output)
    assert (recipe.train.epochs, recipe.train.lr, recipe.budget, recipe.ema) == (2, 0.003, 60, 0.9)
    code, out, _ = docvit("classify", corpus, "--model", output, "--workers", 0, "--format", "jsonl")
    assert code == 0
    assert {row["label"] for row in map(json.loads, out.splitlines())} <= set(CLASSES)


@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_what_was_passed_over_and_left_out_is_said_at_the_end(docvit, corpus, start, tmp_path, monkeypatch, name):
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    (data / "bars" / "broken.pdf").write_bytes(b"%PDF-1.4")
    (data / "bars" / "letter.docx").touch()
    monkeypatch.setattr(train, "print_last", lambda *_: print("the end of the training", file=sys.stderr))
    line = ("--output", tmp_path / "out", "--init", start, "--device", "cpu", "--workers", 0, "--epochs", 1)
    code, _, err = docvit(name, data, *line, *(["--skip-unreadable"] if name == "train" else []))
    assert code == 0
    at_the_end = err.partition("the end of the training")[2]
    assert "1 file passed over" in at_the_end
    assert "letter.docx" in at_the_end
    assert "1 of 13 documents are left out" in at_the_end
    assert f"Unreadable: {data}/bars/broken.pdf: " in at_the_end


def test_options_reach_the_model(docvit, corpus, start, tmp_path):
    more = ("--epochs", 1, "--positions", "page-independent", "--scopes", "page", "--page-size", 48, "--max-pages", 2)
    assert docvit(*training(corpus, tmp_path / "out", start, *more))[0] == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["positions"], config["scopes"], config["page_size"]) == ("page-independent", "page", 48)
    assert config["classes"] == list(CLASSES)
    assert read_recipe(tmp_path / "out").max_pages == 2


def test_a_fold_of_sources_is_held_out(docvit, sources, start, tmp_path):
    more = ("--epochs", 1, "--group-by", "source", "--fold", "2/4")
    assert docvit(*training(sources, tmp_path / "out", start, *more))[0] == 0
    assert 0 <= float(metrics(tmp_path / "out")[0]["valid_accuracy"]) <= 1


def test_everything_wrong_with_the_data_is_said_before_training(docvit, start, corpus, tmp_path):
    (tmp_path / "data" / "empty").mkdir(parents=True)
    (tmp_path / "data" / "void").mkdir()
    code, _, err = docvit(*training(tmp_path / "data", tmp_path / "out", start))
    assert code == 2
    assert "without documents: empty" in err
    assert "without documents: void" in err
    table = tmp_path / "table.csv"
    (tmp_path / "broken.pdf").write_bytes(b"")
    (tmp_path / "worse.pdf").write_bytes(b"<html>")
    table.write_text(f"path,label\n{corpus}/bars/bars0.pdf,bars\nbroken.pdf,text\nworse.pdf,text\n")
    code, _, err = docvit(*training(table, tmp_path / "out", start))
    assert code == 2
    assert "Empty: " in err
    assert "Unreadable: " in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["worse.pdf", "gone.pdf"])  # found when documents are read, and before
def test_a_password_opens_documents_to_train_on(docvit, start, corpus, tmp_path, monkeypatch, name):
    monkeypatch.setenv("DOCVIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "locked.pdf").write_bytes(ENCRYPTED)
    (tmp_path / "worse.pdf").write_bytes(b"<html>")
    (tmp_path / "table.csv").write_text(f"path,label\n{corpus}/bars/bars0.pdf,bars\nlocked.pdf,text\n{name},text\n")
    for password, said in (([], True), (["--password", "secret"], False)):
        code, _, err = docvit(*training(tmp_path / "table.csv", tmp_path / "out", start, *password))
        assert code == 2
        assert name in err
        assert ("Encrypted: " in err) == said


def test_an_output_that_holds_a_run_is_left_alone(docvit, corpus, trained, start):
    before = (trained / "model.safetensors").read_bytes()
    code, _, err = docvit(*training(corpus, trained, start))
    assert code == 2
    assert "--resume" in err
    code, _, err = docvit(
        "train", corpus, "--output", trained, "--resume", "--epochs", 9, "--positions", "page-independent"
    )
    assert code == 2
    assert "--epochs was 12" in err
    assert "--positions was None" in err
    assert (trained / "model.safetensors").read_bytes() == before


def test_a_run_that_cannot_be_resumed(docvit, corpus, start, tmp_path):
    output = tmp_path / "out"
    assert docvit(*training(corpus, output, start, "--epochs", 1))[0] == 0
    checkpoint = (output / CHECKPOINT).read_bytes()
    for damaged in (b"", checkpoint[:1000], b"\0" * 1000):
        (output / CHECKPOINT).write_bytes(damaged)
        code, _, err = docvit("train", corpus, "--output", output, "--resume", "--device", "cpu", "--workers", 0)
        assert code == 2
        assert "damaged" in err
    (output / "recipe.json").write_text("{")
    code, _, err = docvit("train", corpus, "--output", output, "--resume")
    assert code == 2
    assert "damaged" in err


def test_a_finished_run_resumes_to_itself(docvit, corpus, trained):
    before = load_file(trained / "model.safetensors")
    code, out, _ = docvit("train", corpus, "--output", trained, "--resume", "--device", "cpu", "--workers", 0)
    assert code == 0
    assert "epoch 12" in out
    assert all((value == before[name]).all() for name, value in load_file(trained / "model.safetensors").items())


def test_ctrl_c_before_training_says_that_nothing_began(docvit, corpus, start, tmp_path, monkeypatch, caplog):
    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        yield

    monkeypatch.setattr(cache, "read_documents", interrupted)
    # which background jobs of a shell begin without
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, out, err = docvit(*training(corpus, tmp_path / "run", start))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, err) == (130, "", "interrupted\n")
    assert "stopped before training began: the same command goes on" in caplog.text
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused(docvit, corpus, start, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / CLASSES[0]).symlink_to(f"{corpus}/{CLASSES[0]}")
    code, _, err = docvit(*training(tmp_path / "data", tmp_path / "run", start))
    assert code == 2
    assert f"training needs at least two classes, found: {CLASSES[0]}" in err


def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_weights(
    docvit, corpus, start, tmp_path, monkeypatch, caplog
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert docvit(*training(corpus, whole, start, "--epochs", 3))[0] == 0
    original, steps = supervised.classification_loss, itertools.count(1)

    def interrupted(recipe):
        inner = original(recipe)

        def loss(model, batch, progress):
            if next(steps) == 6:
                signal.raise_signal(signal.SIGINT)
            return inner(model, batch, progress)

        return loss

    monkeypatch.setattr(supervised, "classification_loss", interrupted)
    assert docvit(*training(corpus, cut, start, "--epochs", 3))[:2] == (130, "")
    assert "stopping after this step" in caplog.text
    assert len(metrics(cut)) < 3
    assert docvit("train", corpus, "--output", cut, "--resume", "--device", "cpu", "--workers", 0)[0] == 0
    one, two = (load_file(folder / "model.safetensors") for folder in (cut, whole))
    assert all((one[name] == value).all() for name, value in two.items())
    assert len(metrics(cut)) == 3


def test_all_that_is_wrong_with_a_csv_and_its_files_is_said_at_once(docvit, corpus, start, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 no more than this")
    (tmp_path / "empty.pdf").touch()
    good = f"{corpus}/{CLASSES[0]}/{CLASSES[0]}0.pdf"
    rows = ["path,label", f"{good},a", "gone.pdf,a", "broken.pdf,b", "empty.pdf,b", "x.pdf,"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    code, _, err = docvit(*training(tmp_path / "table.csv", tmp_path / "run", start))
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 5  # the first says what cannot be used
    starts = ("line 3: no such file", "line 6: empty", "Unreadable: ", "Empty: ")
    for words, line in zip(starts, lines[1:], strict=True):
        assert line.strip().startswith(words)
    assert not (tmp_path / "run").exists()
