"""The commands as a user meets them: rows, reports, exit codes, and one line instead of a traceback."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, ENCRYPTED, assemble, classed_pdf, pdf_bytes, process
from PIL import Image

COMMANDS = ("classify", "evaluate", "inspect", "review", "sort", "split", "train", "pretrain")
KEYS = {"path", "label", "score", "scores", "num_pages", "pages_read", "page_relevance", "error", "pages", "note"}
KEYS |= {"words_read", "words_from", "known", "unsure", "parts"}


@pytest.fixture
def classify(docvit, trained):
    """`docvit classify` with the tiny model, rendering in this process."""
    return lambda *rest: docvit("classify", "--model", trained, "--device", "cpu", "--workers", 0, *rest)


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help(docvit, arguments):
    code, out, _ = docvit(*arguments, "--help")
    assert code == 0
    assert "Usage: " in out


def test_without_arguments_the_commands_are_shown(docvit):
    code, out, err = docvit()
    assert code in (0, 2)
    assert all(name in out + err for name in COMMANDS)


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
        assert words.lower() in " ".join(err.split()).lower()
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
    assert [bool(row["message"]) for row in rows] == [False, False, True]
    assert rows[0]["num_pages"] == "2"


def test_a_row_of_the_table_is_a_line_whatever_the_name(classify, tmp_path):
    (tmp_path / "two\nlines.pdf").write_bytes(classed_pdf("text"))
    code, out, _ = classify(tmp_path / "two\nlines.pdf", tmp_path / "go\rne.pdf")
    _, read, gone = out.splitlines()
    assert code == 1
    assert "lines.pdf  text" in read
    assert "ne.pdf  NotFound: " in gone


def test_what_is_wrong_with_the_folder_of_explanations_is_said_before_any_row(classify, tmp_path):
    (tmp_path / "a.pdf").write_bytes(classed_pdf("text"))
    (tmp_path / "file").touch()
    code, out, err = classify(tmp_path / "a.pdf", "--explain", tmp_path / "file")
    assert (code, out) == (2, "")
    assert str(tmp_path / "file") in err


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


def test_what_is_passed_over_is_said_at_the_end(classify, tmp_path):
    (tmp_path / "a.pdf").write_bytes(classed_pdf("text"))
    assert classify(tmp_path)[2] == ""
    for name in ("letter.docx", "old\nletter.DOCX", "README"):
        (tmp_path / name).touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.json").touch()
    code, out, err = classify(tmp_path)
    assert (code, len(out.splitlines())) == (0, 2)
    head, *listed = err.splitlines()
    assert head.startswith("4 files passed over, no documents by their suffix: ")
    assert set(head.split(": ")[1].split(", ")) == {"2 .docx", "1 without one", "1 written by a training"}
    names = ("letter.docx", "old?letter.DOCX", "README", "run")
    assert {line.strip() for line in listed} == {f"{tmp_path}/{name}" for name in names}
    for i in range(30):
        (tmp_path / f"{i}.txt").touch()
    lines = classify(tmp_path)[2].splitlines()
    assert (len(lines), lines[-1]) == (1 + 20 + 1, "  ... and 14 more")


def test_how_many_could_not_be_read_is_said_at_the_end(classify, tmp_path):
    (tmp_path / "a.pdf").write_bytes(classed_pdf("text"))
    (tmp_path / "white.pdf").write_bytes(pdf_bytes(contents=[b""]))
    assert classify(tmp_path)[2] == ""
    (tmp_path / "b.pdf").write_bytes(ENCRYPTED)
    for name in ("c.pdf", "d.pdf"):
        (tmp_path / name).write_bytes(b"%PDF-1.4")
    assert classify(tmp_path)[2] == "3 of 5 documents could not be read: 2 Unreadable, 1 Encrypted\n"


def test_a_password_opens_a_document_and_its_explanation(classify, tmp_path):
    (tmp_path / "a.pdf").write_bytes(ENCRYPTED)
    assert "Encrypted: " in classify(tmp_path / "a.pdf")[1]
    code, _, err = classify(tmp_path / "a.pdf", "--password", "secret", "--explain", tmp_path / "seen")
    assert (code, err) == (0, "")
    assert (tmp_path / "seen" / "a.png").exists()


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
    code, out, _ = classify("--explain", tmp_path / "seen", *paths)
    assert code == 1
    assert len(out.splitlines()) == 4
    assert sorted(p.name for p in (tmp_path / "seen").iterdir()) == ["same-2.png", "same.png"]
    with Image.open(tmp_path / "seen" / "same.png") as picture:
        assert np.ptp(np.array(picture.convert("RGB")).astype(int), axis=2).max() > 60


def test_an_explanation_does_not_overwrite_the_picture_that_it_explains(classify, tmp_path):
    scan = tmp_path / "scan.png"
    page = Image.new("L", (60, 80), 255)
    page.paste(0, (10, 10, 40, 20))
    page.save(scan)
    before = scan.read_bytes()
    assert classify(scan, "--explain", tmp_path)[0] == 0
    assert scan.read_bytes() == before
    assert (tmp_path / "scan-2.png").exists()


def test_a_folder_for_explanations_that_is_a_file(classify, corpus, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = classify(corpus / "bars" / "bars0.pdf", "--explain", tmp_path / "file")
    assert code == 2
    assert "error: " in err


def test_head_ends_it_quietly(trained, corpus):
    paths = [corpus / kind / f"{kind}{i}.pdf" for kind in CLASSES for i in range(4)] * 2
    options = ("--model", trained, "--device", "cpu")
    with process("from docvit.cli import main; main()", "classify", *options, *paths) as other:
        assert other.stdout.readline().startswith("path")
        other.stdout.close()
        err = other.stderr.read()
        assert other.wait(300) == 1
    assert err == ""


def test_the_bundled_model_labels_without_any_option(docvit, corpus):
    code, out, _ = docvit("classify", corpus / "text" / "text0.pdf", "--format", "jsonl", "--workers", 0)
    assert code == 0
    assert json.loads(out)["label"] in json.loads(out)["scores"]
