"""Poppler beside PDFium: what it is asked, when it is tried, and what its failures mean."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pdf2image
import pytest
from pdf2image.exceptions import PDFInfoNotInstalledError, PDFPageCountError
from PIL import Image

from docvit.documents.errors import Empty, Encrypted, Unreadable
from docvit.documents.pages import open_document, read_document
from docvit.documents.rendering import Rendering


class FakePoppler:
    """What pdf2image would answer: one landscape page made by a turn."""

    def __init__(self, monkeypatch):
        self.calls = []
        monkeypatch.setattr(pdf2image, "pdfinfo_from_path", self.info)
        monkeypatch.setattr(pdf2image, "convert_from_path", self.convert)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")

    def info(self, path, timeout, userpw, first_page, last_page):
        assert os.path.isabs(path)
        page = {f"Page    {first_page} size": "612 x 792 pts (letter)", f"Page    {first_page} rot": "90"}
        return {"Pages": 2} | (page if first_page else {})

    def convert(self, path, **options):
        self.calls.append(options)
        return [Image.new("RGB", (448, 346), "gray")]


def test_poppler_draws_page_by_page_at_the_size_wanted(make_pdf, monkeypatch):
    poppler = FakePoppler(monkeypatch)
    stack = read_document(make_pdf(), Rendering(renderer="poppler"))
    assert [page.shape for page in stack.pages] == [(176, 224, 3)] * 2
    assert [(c["first_page"], c["last_page"], c["size"], c["use_cropbox"]) for c in poppler.calls] == [
        (1, 1, 448, True), (2, 2, 448, True),
    ]  # fmt: skip


def test_poppler_is_tried_when_pdfium_fails(make_pdf, monkeypatch, caplog):
    FakePoppler(monkeypatch)
    path = make_pdf()
    path.write_bytes(path.read_bytes()[:400])
    with caplog.at_level(logging.WARNING):
        assert read_document(path).num_pages == 2
    assert "poppler" in caplog.text


def test_pdfium_has_the_last_word_when_both_fail(make_pdf, monkeypatch):
    def fails(*args, **options):
        raise PDFPageCountError("Unable to get page count.")

    FakePoppler(monkeypatch)
    monkeypatch.setattr(pdf2image, "pdfinfo_from_path", fails)
    with pytest.raises(Unreadable, match="1,000,000"):
        open_document(make_pdf(count=1_000_000))


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (PDFPageCountError("Command Line Error: Incorrect password"), Encrypted, "password"),
        (PDFPageCountError("Syntax Error: Couldn't find trailer dictionary"), Unreadable, "damaged"),
        (PDFPageCountError("Syntax Error: Invalid page count 0"), Empty, "no pages"),
        (PDFInfoNotInstalledError(), Unreadable, "install poppler"),
    ],
)
def test_what_poppler_says_is_typed(make_pdf, monkeypatch, answer, kind, said):
    def fails(*args, **options):
        raise answer

    monkeypatch.setattr(pdf2image, "pdfinfo_from_path", fails)
    with pytest.raises(kind, match=said):
        open_document(make_pdf(), Rendering(renderer="poppler"))


@pytest.mark.usefixtures("no_poppler")
def test_the_hint_at_poppler_is_given_where_it_is_missing(make_pdf):
    with pytest.raises(Unreadable, match="install poppler"):
        open_document(make_pdf(count=7))


@pytest.mark.skipif(shutil.which("pdftoppm") is None, reason="needs poppler")
def test_both_renderers_draw_the_same_page(make_pdf):
    path = make_pdf(pages=[(612, 792), (792, 612)], extra="/Rotate 90")
    ours, theirs = (read_document(path, Rendering(renderer=name)) for name in ("pdfium", "poppler"))
    for a, b in zip(ours.pages, theirs.pages, strict=True):
        assert a.shape == b.shape
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.9


def test_a_document_left_open_is_quiet_when_the_interpreter_ends(make_pdf):
    script = f"""
import docvit
document = docvit.open_document({str(make_pdf())!r})
document[0]
import docvit.documents.renderers as renderers
renderers._close_all()
renderers.PDFIUM_LOCK = None  # as the interpreter leaves it while objects in circles still live
del document
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr == ""
