"""`docvit sort` as a user meets it: what it prints, its exit status, and a model behind it."""

from __future__ import annotations

import re

import pytest
from conftest import ENCRYPTED, classed_pdf, pdf_bytes

from docvit.documents.errors import Unreadable
from docvit.inference.classify import DocumentClassifier
from docvit.inference.prediction import Prediction


@pytest.fixture
def inbox(tmp_path, monkeypatch):
    """Three kinds of documents in a folder that is the working one's `in`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for kind in ("bars", "blocks", "text"):
        (tmp_path / "in" / f"{kind}.pdf").write_bytes(classed_pdf(kind))
    return tmp_path / "in"


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_sorts_its_classes_and_the_table_counts_them(docvit, trained, inbox, tmp_path):
    (inbox / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    (inbox / "white.pdf").write_bytes(pdf_bytes(contents=[b""]))
    (inbox / "locked.pdf").write_bytes(ENCRYPTED)
    (inbox / "letter.docx").touch()
    line = ("sort", "in", "--into", "in/out", "--model", trained, "--min-score", 0)
    code, out, err = docvit(*line)
    assert code == 1
    rows = dict(re.findall(r"^(\w+) +(\d+)$", out, re.MULTILINE))
    assert rows == {"bars": "1", "blocks": "1", "text": "1", "unsure": "1", "unreadable": "2", "all": "6"}
    assert out.splitlines()[-1] == (
        "6 copied (--move removes the originals), 0 before; docvit sort --into in/out --undo brings them back"
    )
    problems, passed_over = err.splitlines()[:2], err.splitlines()[2:]
    assert [line.split(": ")[:2] for line in problems] == [
        [str(inbox / "broken.pdf"), "Unreadable"],
        [str(inbox / "locked.pdf"), "Encrypted"],
    ]
    assert passed_over == ["1 file passed over, no documents by their suffix: 1 .docx", "  in/letter.docx"]
    names = {"bars/bars.pdf", "blocks/blocks.pdf", "text/text.pdf", "unsure/white.pdf"}
    assert files(tmp_path / "in" / "out") == {
        *names,
        "docvit-sort.jsonl",
        "unreadable/broken.pdf",
        "unreadable/locked.pdf",
    }
    code, out, err = docvit(*line, "--move")
    assert code == 0
    assert "0 moved, 6 before; docvit sort --into in/out --undo brings them back to be sorted anew\n" in out
    assert "6 of these were copied and keep their originals" in out
    code, out, err = docvit("sort", "--into", "in/out", "--undo")
    assert (code, out, err) == (0, "brought back: 6\n", "")


@pytest.fixture
def by_name(monkeypatch):
    """A classifier that goes by the name of a file."""

    def predict(self, paths, **_):
        for path in paths:
            if path.endswith("blocks.pdf"):
                yield Prediction(path, error=Unreadable(path, "it is damaged"))
            else:
                yield Prediction(path, "bars", 0.6)

    monkeypatch.setattr(DocumentClassifier, "predict", predict)


@pytest.mark.usefixtures("by_name")
def test_a_dry_run_says_what_would_be_done_and_does_nothing(docvit, trained, inbox, tmp_path):
    code, out, err = docvit("sort", "in", "--into", "out", "--model", trained, "--dry-run")
    assert code == 1
    assert f"{inbox}/bars.pdf -> out/bars/bars.pdf" in out.splitlines()
    assert f"{inbox}/blocks.pdf -> out/unreadable/blocks.pdf" in out.splitlines()
    assert err == f"{inbox}/blocks.pdf: Unreadable: it is damaged\n"
    assert not (tmp_path / "out").exists()
    docvit("sort", "in", "--into", "out", "--model", trained, "--move")
    code, out, _ = docvit("sort", "--into", "out", "--undo", "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, f"out/bars/bars.pdf -> {inbox}/bars.pdf")
    assert files(inbox) == set()


@pytest.mark.usefixtures("by_name")
def test_ctrl_c_says_that_the_same_command_goes_on_and_it_does(docvit, trained, inbox, tmp_path, monkeypatch, caplog):
    from docvit.inference import sort

    advance = sort.advance

    def interrupted(log, entry):
        if entry.source.endswith("text.pdf"):
            raise KeyboardInterrupt
        return advance(log, entry)

    line = ("sort", "in", "--into", "out", "--model", trained, "--move")
    monkeypatch.setattr(sort, "advance", interrupted)
    code, _, err = docvit(*line)
    assert (code, err.splitlines()[-1]) == (130, "interrupted")
    assert "the same command goes on from here" in caplog.text
    assert files(inbox) == {"text.pdf"}
    monkeypatch.setattr(sort, "advance", advance)
    assert docvit(*line)[0] == 0
    assert files(inbox) == set()
    assert files(tmp_path / "out") == {"bars/bars.pdf", "bars/text.pdf", "unreadable/blocks.pdf", "docvit-sort.jsonl"}


def test_wrong_usage_is_one_line(docvit, inbox, tmp_path):
    (tmp_path / "file").touch()
    for line, said in (
        (["--into", "out"], "nothing to sort: name files or folders"),
        (["in", "--into", "in"], "lies in --into"),
        (["in", "--into", "file"], "--into file is not a folder"),
        (["--into", "out", "--undo"], "nothing to undo: there is no docvit-sort.jsonl in out"),
    ):
        code, out, err = docvit("sort", *line)
        assert (code, out, err.count("\n")) == (2, "", 1), line
        assert said in err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line_and_status_1(docvit, inbox, tmp_path):
    (tmp_path / "file").touch()
    code, out, err = docvit("sort", "in", "--into", "file/out")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "file/out" in err
    assert len(files(inbox)) == 3
