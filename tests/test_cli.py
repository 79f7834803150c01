"""The commands as a user meets them: rows, reports, exit codes, and one line instead of a traceback."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY, assemble, classed_pdf, pdf_bytes
from PIL import Image
from safetensors.torch import load_file
from test_pages import ENCRYPTED

from docvit import cli
from docvit.recipes import read_recipe
from docvit.train import CHECKPOINT

KEYS = {"path", "label", "score", "scores", "num_pages", "pages_read", "page_relevance", "error"}


@pytest.fixture
def docvit(monkeypatch, capfd):
    """`docvit("classify", ...)` gives (exit code, standard output, standard error) of the command."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["docvit", *map(str, arguments)])
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            logging.captureWarnings(False)
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return ended.value.code or 0, out, err

    return run


@pytest.fixture
def classify(docvit, trained):
    """`docvit classify` with the tiny model, rendering in this process."""
    return lambda *rest: docvit("classify", "--model", trained, "--device", "cpu", "--workers", 0, *rest)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def process(script, *arguments):
    """The same in a process of its own."""
    # as many threads as here: sums over another number of threads differ in their last bits
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(Path(__file__).parent.parent)}
    environment = {**os.environ, **threads}
    line = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def odd_files(folder):
    """Bad input by name, and the kind of error that it is."""
    whole = classed_pdf("text")
    image = io.BytesIO()
    Image.new("L", (50, 50)).save(image, "PNG")
    files = {
        "empty.pdf": (b"", "Empty"),
        "truncated.pdf": (whole[:300], "Unreadable"),
        "encrypted.pdf": (ENCRYPTED if isinstance(ENCRYPTED, bytes) else base64.b64decode(ENCRYPTED), "Encrypted"),
        "renamed.pdf": (image.getvalue(), "Unreadable"),
        "page.html": (b"<!doctype html><p>log in", "Unsupported"),
        "zero pages.pdf": (assemble([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"]), "Empty"),
        "absurd.pdf": (pdf_bytes([(10_000_000, 10)]), "TooLarge"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.pdf").mkdir()
    return {name: kind for name, (_, kind) in files.items()} | {"folder.pdf": "Unsupported", "missing.pdf": "NotFound"}


# --- help and wrong usage ---


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"], ["train", "--help"], ["evaluate", "--help"]])
def test_help(docvit, arguments):
    code, out, _ = docvit(*arguments)
    assert code == 0
    assert "Usage: " in out


def test_without_arguments_the_commands_are_shown(docvit):
    code, out, err = docvit()
    assert code in (0, 2)
    assert all(name in out + err for name in ("classify", "train", "evaluate"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], ["nonsense"]),
        (["classify"], ["PATH"]),
        (["classify", "x.pdf", "--format", "xml"], ["table", "jsonl", "csv"]),
        (["classify", "x.pdf", "--max-pages", "0"], ["--max-pages"]),
        (["classify", "x.pdf", "--model", "./nowhere"], ["nowhere", "neither a model folder"]),
        (["classify", "x.pdf", "--model", "/"], ["not a model folder", "config.json"]),
        (["evaluate", "nowhere"], ["nowhere", "no such file"]),
        (["train", "nowhere", "--output", "out"], ["nowhere", "no such file"]),
        (["train", "nowhere"], ["--output"]),
        (["train", "{corpus}", "--output", "out", "--positions", "odd"], ["odd", "spatial+page", "page-independent"]),
        (["train", "{corpus}", "--output", "out", "--scopes", "odd"], ["odd", "page-then-document:K", "alternate:K"]),
        (["train", "{corpus}", "--output", "out", "--scopes", "alternate:99"], ["K from 1 to"]),
        (["train", "{corpus}", "--output", "out", "--model", "odd"], ["odd", "docvit_small_patch16"]),
        (["train", "{corpus}", "--output", "out", "--init", "timm:odd"], ["odd"]),
        (["train", "{corpus}", "--output", "out", "--init", "./nowhere"], ["nowhere"]),
        (["train", "{corpus}", "--output", "out", "--device", "nonsense"], ["nonsense", "cpu"]),
        (["train", "{corpus}", "--output", "out", "--fold", "3/2"], ["K/N"]),
        (["train", "{corpus}", "--output", "out", "--fold", "1/2"], ["--group-by"]),
        (["train", "{corpus}", "--output", "out", "--fold", "1/2", "--valid", "x"], ["--fold and --valid"]),
        (["train", "{corpus}", "--output", "out", "--group-by", "source"], ["need a CSV"]),
        (["train", "{corpus}", "--output", "out", "--lr", "-1"], ["--lr"]),
        (["train", "{corpus}", "--output", "out", "--resume"], ["no run to resume"]),
        (["train", "{corpus}", "--output", "{corpus}/bars/bars0.pdf"], ["not a folder"]),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_possible(
    docvit, trained, corpus, arguments, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = [a.replace("{corpus}", str(corpus)) for a in arguments]
    if arguments[0] == "evaluate":
        arguments += ["--model", str(trained)]
    code, out, err = docvit(*arguments)
    assert (code, out) == (2, "")
    for words in said:
        assert words.lower() in " ".join(err.replace("│", " ").split()).lower()
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["classify", "evaluate"])
def test_a_device_that_is_not_there(docvit, trained, corpus, name):
    code, _, err = docvit(name, corpus, "--model", trained, "--device", "nonsense")
    assert code == 2
    assert "no device 'nonsense'" in err


# --- classify ---


def test_a_table(classify, corpus):
    code, out, _ = classify(corpus)
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["path", "label", "score", "pages"]
    assert len(lines) == 13
    for line in lines[1:]:
        path, label, score, pages = line.split()
        assert Path(path).parent.name == label
        assert 0 < float(score) <= 1
        assert pages in ("2", "3")


def test_json_lines(classify, corpus):
    code, out, _ = classify(corpus, "--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert len(rows) == 12
    for row in rows:
        assert set(row) == KEYS
        assert row["label"] == Path(row["path"]).parent.name
        assert row["error"] is None
        assert row["pages_read"] == row["num_pages"] == len(row["page_relevance"])


def test_csv(classify, tmp_path):
    names = ['a, "b".pdf', "two\nlines.pdf", "gone.pdf"]
    for name in names[:2]:
        (tmp_path / name).write_bytes(classed_pdf("text"))
    code, out, _ = classify("--format", "csv", *(tmp_path / name for name in names))
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert code == 1
    assert [row["path"] for row in rows] == [str(tmp_path / name) for name in names]
    assert [row["label"] for row in rows] == ["text", "text", ""]
    assert [row["error"] for row in rows] == ["", "", "NotFound"]
    assert rows[0]["num_pages"] == "2"


@pytest.mark.parametrize("workers", [0, 2])
def test_every_bad_file_is_a_row_and_the_good_ones_go_on(docvit, trained, tmp_path, workers):
    kinds = odd_files(tmp_path)
    good = ["first.pdf", "with space.pdf", "Prüfung 試験.pdf"]
    for name in good:
        (tmp_path / name).write_bytes(classed_pdf("blocks"))
    paths = [tmp_path / name for name in (good[0], *kinds, *good[1:])]
    code, out, _ = docvit(
        "classify", "--model", trained, "--device", "cpu", "--workers", workers, "--format", "jsonl", *paths
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [row["path"] for row in rows] == list(map(str, paths))
    assert {Path(row["path"]).name: row["error"]["type"] for row in rows if row["error"]} == kinds
    assert all(row["error"]["message"] for row in rows if row["error"])
    assert [row["label"] for row in rows if not row["error"]] == ["blocks"] * 3


def test_bad_files_in_a_table_say_what_is_wrong(classify, tmp_path):
    kinds = odd_files(tmp_path)
    code, out, _ = classify(*(tmp_path / name for name in kinds))
    assert code == 1
    for line, (name, kind) in zip(out.splitlines()[1:], kinds.items(), strict=True):
        assert name in line
        assert f"{kind}: " in line


@pytest.mark.usefixtures("in_tmp")
def test_names_that_look_like_options_or_are_no_text(classify):
    names = ["-x.pdf", "--help", os.fsdecode(b"\xff.pdf")]
    for name in names:
        Path(name).write_bytes(classed_pdf("bars"))
    code, out, _ = classify("--format", "jsonl", "--explain", "seen", "--", *names)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["path"] for row in rows] == names
    assert [row["label"] for row in rows] == ["bars"] * 3
    assert len(list(Path("seen").iterdir())) == 3


def test_a_folder_without_documents(classify, tmp_path):
    code, out, _ = classify(tmp_path, "--format", "jsonl")
    assert code == 1
    assert json.loads(out)["error"]["type"] == "Empty"


def test_a_long_document_says_how_many_pages_were_read(classify, tmp_path):
    (tmp_path / "ten.pdf").write_bytes(classed_pdf("text", 10))
    code, out, _ = classify(tmp_path / "ten.pdf", "--max-pages", 4)
    assert code == 0
    assert out.splitlines()[1].endswith("4 of 10")
    row = json.loads(classify(tmp_path / "ten.pdf", "--max-pages", 4, "--format", "jsonl")[1])
    assert (row["num_pages"], row["pages_read"], len(row["page_relevance"])) == (10, 4, 4)


def test_another_renderer_warns(classify, corpus, caplog):
    classify(corpus / "bars" / "bars0.pdf", "--renderer", "poppler")
    assert "trained on pages drawn by pdfium" in caplog.text


def test_explanations_are_pictures_each_under_a_name_of_its_own(classify, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.pdf").write_bytes(classed_pdf("blocks"))
    paths = [tmp_path / "a" / "same.pdf", tmp_path / "gone.pdf", tmp_path / "b" / "same.pdf"]
    for _ in range(2):  # the second time they are drawn anew, not added
        code, out, _ = classify("--explain", tmp_path / "seen", *paths)
        assert code == 1
        assert len(out.splitlines()) == 4
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == ["same-2.png", "same.png"]
    with Image.open(tmp_path / "seen" / "same.png") as picture:
        assert np.ptp(np.array(picture.convert("RGB")).astype(int), axis=2).max() > 60


def test_a_folder_for_explanations_that_is_a_file(classify, corpus, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = classify(corpus / "bars" / "bars0.pdf", "--explain", tmp_path / "file")
    assert code == 2
    assert "error: " in err


def test_head_ends_it_quietly(trained, corpus):
    paths = [corpus / kind / f"{kind}{i}.pdf" for kind in CLASSES for i in range(4)] * 5
    options = ("--model", trained, "--device", "cpu")
    with process("from docvit.cli import main; main()", "classify", *options, *paths) as other:
        assert other.stdout.readline().startswith("path")
        other.stdout.close()
        err = other.stderr.read()
        assert other.wait(300) == 1
    assert err == ""


def test_the_model_in_the_box_labels_without_any_option(docvit, corpus):
    code, out, _ = docvit("classify", corpus / "text" / "text0.pdf", "--format", "jsonl", "--workers", 0)
    assert code == 0
    assert json.loads(out)["label"] in json.loads(out)["scores"]


# --- evaluate ---


def test_a_report(docvit, trained, corpus):
    options = ("--model", trained, "--device", "cpu", "--workers", 0)
    code, out, _ = docvit("evaluate", corpus, *options)
    assert code == 0
    assert "12 documents\naccuracy 1.000   macro-F1 1.000" in out
    for name in CLASSES:
        assert f"{name:<6}       1.00    1.00  1.00          4" in out
    code, out, _ = docvit("evaluate", corpus, *options, "--format", "json")
    values = json.loads(out)
    assert code == 0
    assert (values["accuracy"], values["macro_f1"], values["unreadable"]) == (1, 1, 0)
    assert values["classes"] == list(CLASSES)
    assert values["confusion"] == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    assert {"ece", "aurc", "per_class"} <= set(values)


def test_unreadable_documents_are_named_and_counted(docvit, trained, corpus, tmp_path):
    (tmp_path / "broken.pdf").write_bytes(b"")
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\n{corpus}/bars/bars0.pdf,bars\nbroken.pdf,text\n{corpus}/text/text0.pdf,bars\n")
    options = ("--model", trained, "--device", "cpu", "--workers", 0)
    code, out, err = docvit("evaluate", table, *options, "--format", "json")
    values = json.loads(out)
    assert code == 1
    assert (values["documents"], values["unreadable"], values["accuracy"]) == (2, 1, 0.5)
    assert "Empty" in err
    assert "broken.pdf" in err
    assert docvit("evaluate", table, *options)[1].startswith("2 documents, 1 unreadable\n")
    table.write_text("path,label\nbroken.pdf,text\n")
    code, _, err = docvit("evaluate", table, *options)
    assert code == 2
    assert "none of the documents" in err


def test_labels_that_the_model_does_not_know(docvit, trained, corpus, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"path,label\n{corpus}/bars/bars0.pdf,poster\ngone.pdf,bars\n")
    code, _, err = docvit("evaluate", table, "--model", trained)
    assert code == 2
    assert "poster" in err
    assert "line 3: no such file: gone.pdf" in err


# --- train ---


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A folder of an untrained tiny model, to start from: the variants are too large for here."""
    from docvit.model import DocViT, DocViTConfig

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


def test_an_output_that_holds_a_run_is_left_alone(docvit, corpus, trained, start):
    before = (trained / "model.safetensors").read_bytes()
    code, _, err = docvit(*training(corpus, trained, start))
    assert code == 2
    assert "--resume" in err
    code, _, err = docvit(
        "train", corpus, "--output", trained, "--resume", "--epochs", 9, "--positions", "page-independent"
    )
    assert code == 2
    assert "--epochs was 20" in err
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
    assert "epoch 20" in out
    assert all((value == before[name]).all() for name, value in load_file(trained / "model.safetensors").items())


CTRL_C_IN_STEP_SIX = """
import itertools, os, signal
from docvit import cli, recipes
original = recipes.classification_loss
def interrupted(recipe):
    inner, steps = original(recipe), itertools.count(1)
    def loss(model, batch):
        if next(steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return inner(model, batch)
    return loss
recipes.classification_loss = interrupted
cli.main()
"""


def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_same_weights(docvit, corpus, start, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert docvit(*training(corpus, whole, start, "--epochs", 3))[0] == 0
    with process(CTRL_C_IN_STEP_SIX, *training(corpus, cut, start, "--epochs", 3)) as other:
        out, err = other.communicate(timeout=300)
    assert (other.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "stopping after this step" in err
    assert len(metrics(cut)) < 3
    assert docvit("train", corpus, "--output", cut, "--resume", "--device", "cpu", "--workers", 0)[0] == 0
    one, two = (load_file(folder / "model.safetensors") for folder in (cut, whole))
    assert all((one[name] == value).all() for name, value in two.items())
    assert len(metrics(cut)) == 3
