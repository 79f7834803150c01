"""Outputs that cannot be written, or exist already, are said before any work."""

from __future__ import annotations

import sys

import pytest
from conftest import classed_pdf


@pytest.fixture
def document(tmp_path, monkeypatch):
    """A document, and no model may be loaded for it."""
    monkeypatch.setattr("docvit.inference.classify.DocumentClassifier.from_pretrained", None)
    (tmp_path / "a.pdf").write_bytes(classed_pdf("bars"))
    return tmp_path / "a.pdf"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody, not even root, can write to")
@pytest.mark.parametrize("line", [("split", "--output"), ("classify", "--explain"), ("review", "--output")])
def test_a_folder_that_cannot_be_written_to(docvit, document, line):
    command, option = line
    code, out, err = docvit(command, document, option, "/proc/page.html" if command == "review" else "/proc")
    assert (code, out) == (2, "")
    assert err.startswith("error: /proc: ")
    assert len(err.splitlines()) == 1


def test_a_folder_to_write_to_stays_empty(docvit, document, tmp_path):
    docvit("split", document, "--output", tmp_path / "new" / "folder")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize("line", [("split", "--output"), ("classify", "--explain")])
@pytest.mark.parametrize("inside", ["link/parts", "link"])
def test_what_is_written_does_not_become_data(docvit, document, tmp_path, line, inside):
    command, option = line
    (tmp_path / "data" / "class").mkdir(parents=True)
    (tmp_path / "link").symlink_to("data")
    code, out, err = docvit(command, document, tmp_path / "data", option, tmp_path / inside)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {tmp_path / inside} lies in {tmp_path / 'data'} and would become data")
    assert len(err.splitlines()) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["class"]


def test_a_review_page_is_not_overwritten(docvit, document, tmp_path):
    (tmp_path / "page.html").write_text("corrected")
    code, out, err = docvit("review", document, "--output", tmp_path / "page.html")
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path / 'page.html'} exists: give --output another name, or remove it\n"
    assert (tmp_path / "page.html").read_text() == "corrected"


def test_sorting_nothing_makes_no_folder(docvit, document, tmp_path):
    code, out, err = docvit("sort", tmp_path / "gone.pdf", "--into", tmp_path / "sorted")
    assert (code, out) == (1, "nothing to sort\n")
    assert err == f"{tmp_path / 'gone.pdf'}: there is no such file\n"
    assert not (tmp_path / "sorted").exists()
