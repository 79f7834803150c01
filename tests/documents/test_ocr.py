"""Pages without a text layer, read by OCR: the same words, off by default, and silent."""

from __future__ import annotations

import importlib.util
import socket
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from docvit.documents import ocr
from docvit.documents.cache import CachedDocument, PageCache
from docvit.documents.pages import open_document, read_document
from docvit.documents.rendering import Rendering
from docvit.documents.words import Words
from docvit.documents.workers import read_alone, read_documents
from docvit.inference.rows import note_of

RENDERING = Rendering(size=64, mode="L")
needs_ocr = pytest.mark.skipif(importlib.util.find_spec("rapidocr") is None, reason="needs docvit[ocr]")
LINES = {100: "Invoice number", 500: "Total amount due", 1000: "Page"}


@pytest.fixture
def scan(tmp_path):
    """A TIFF of two pages of 850 x 1100 pixels with the same words."""
    page = Image.new("L", (850, 1100), 255)
    for y, line in LINES.items():
        ImageDraw.Draw(page).text((100, y), line, 0, ImageFont.load_default(36))
    page.save(tmp_path / "scan.tif", save_all=True, append_images=[page])
    return tmp_path / "scan.tif"


@pytest.fixture
def no_network(monkeypatch):
    def refused(*args, **options):
        raise AssertionError("no network is needed")

    monkeypatch.setattr(socket.socket, "connect", refused)


@needs_ocr
@pytest.mark.usefixtures("no_network")
def test_the_words_of_a_scan_are_read_at_their_boxes_without_network_or_noise(scan, capfd):
    stack = read_document(scan, RENDERING, words=True, ocr_pages=1)
    assert capfd.readouterr() == ("", "")
    first, second = stack.words
    assert " ".join(first.texts) == "Invoice number Total amount due Page"
    assert (first.source, stack.words_from, stack.words_read) == ("ocr", "ocr", 6)
    assert len(second) == 0  # beyond the first page
    middles = first.boxes.reshape(-1, 2, 2).mean(1)
    np.testing.assert_allclose(middles[:, 1], [120 / 1100] * 2 + [520 / 1100] * 3 + [1020 / 1100], atol=0.02)
    assert list(first.boxes[:2, 0]) == sorted(first.boxes[:2, 0])
    np.testing.assert_allclose(first.boxes[[0, 2, 5], 0], 100 / 850, atol=0.02)


@needs_ocr
def test_a_blank_page_has_no_words():
    assert len(ocr.ocr_words(Image.new("RGB", (160, 160), "white"))) == 0


@needs_ocr
def test_scans_are_read_in_workers_under_their_limits_and_kept(scan, tmp_path):
    cache = PageCache(tmp_path / "cache", RENDERING, words=True, ocr_pages=1)
    files, _ = cache.prepare([str(scan)], workers=1)
    document = CachedDocument.open(files[str(scan)])
    assert document.words_from == ("ocr", None)
    assert document.load([0]).words[0].texts == ("Invoice", "number", "Total", "amount", "due", "Page")


def test_ocr_is_off_by_default_and_left_alone_where_there_is_text(scan, make_pdf, monkeypatch):
    def never(page):
        raise AssertionError("read by OCR")

    monkeypatch.setattr("docvit.documents.pages.ocr_words", never)
    assert read_document(scan, RENDERING, words=True).words_read == 0
    font = "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Courier>>>>>>"
    path = make_pdf(contents=[b"BT /F1 20 Tf 100 600 Td (text) Tj ET"], extra=font)
    assert read_document(path, RENDERING, words=True, ocr_pages=1).words_from == "text"


def test_ocr_that_fails_costs_nothing_but_the_words_and_is_noted(scan, monkeypatch):
    def fails(page):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("docvit.documents.pages.ocr_words", fails)
    stack = read_document(scan, RENDERING, words=True, ocr_pages=2)
    assert (len(stack.pages), stack.words_read, stack.words_from) == (2, 0, None)
    assert stack.ocr_failed == {0: "out of memory", 1: "out of memory"}
    assert note_of(stack) == "page 1, 2 could not be read by OCR: out of memory"


def test_nothing_is_kept_of_a_document_on_which_ocr_failed(scan, tmp_path, monkeypatch):
    def fails(page):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("docvit.documents.workers.require_ocr", lambda: None)
    monkeypatch.setattr("docvit.documents.pages.ocr_words", fails)
    cache = PageCache(tmp_path / "cache", RENDERING, words=True, ocr_pages=1)
    files, (error,) = cache.prepare([str(scan)], workers=0)
    assert not files
    assert error.message == "OCR failed on page 1 (out of memory)"
    monkeypatch.setattr("docvit.documents.pages.ocr_words", lambda page: Words())
    files, errors = cache.prepare([str(scan)], workers=0)
    assert list(files) == [str(scan)]
    assert not errors


def test_time_for_ocr_is_added_for_the_pages_that_may_be_read(scan, monkeypatch):
    limits = []

    def schedule(pool, read, source, timeout):
        limits.append(timeout)
        done = Future()
        done.set_result(read(source))
        return done

    monkeypatch.setattr("docvit.documents.workers.require_ocr", lambda: None)
    monkeypatch.setattr("docvit.documents.workers._schedule", schedule)
    monkeypatch.setattr("docvit.documents.pages.ocr_words", lambda page: Words())
    for ocr_pages, max_pages, timeout in ((3, 64, 20), (3, 2, 20), (3, None, 20), (0, 64, 20), (3, 64, None)):
        how = {"words": True, "ocr_pages": ocr_pages, "max_pages": max_pages, "timeout": timeout}
        list(read_documents([scan], RENDERING, workers=1, **how))
        read_alone(scan, RENDERING, **how)
    pages = [3, 2, 3, 0]
    assert limits[::2] == limits[1::2] == [*(20 + ocr.OCR_SECONDS * n for n in pages), None]


def test_the_page_is_drawn_large_and_in_colour_for_it(make_pdf, monkeypatch):
    seen = []
    monkeypatch.setattr("docvit.documents.pages.ocr_words", lambda page: seen.append((page.size, page.mode)))
    with open_document(make_pdf(), RENDERING) as document:
        document.read_by_ocr(0)
    assert seen == [((850, 1100), "RGB")]


def test_parts_of_a_long_page_are_read_on_their_own(tmp_path, monkeypatch):
    Image.new("L", (300, 3000), 255).save(tmp_path / "receipt.png")
    drawn = []

    def engine(page):
        drawn.append(page.size)
        return Words(("total",), np.array([[0.1, 0.1, 0.2, 0.2]], np.float32), "ocr")

    monkeypatch.setattr("docvit.documents.pages.ocr_words", engine)
    stack = read_document(tmp_path / "receipt.png", RENDERING, words=True, ocr_pages=2)
    assert len(stack.pages) > 2
    assert [page.texts for page in stack.words[:3]] == [("total",), ("total",), ()]
    assert len(drawn) == 2
    assert all(max(size) == ocr.OCR_SIZE and min(size) > 300 for size in drawn)


def test_without_the_extra_one_error_says_what_to_install(scan, monkeypatch):
    monkeypatch.setattr(ocr.importlib.util, "find_spec", lambda name: None)
    ocr._engine.cache_clear()
    for read in (
        lambda: read_document(scan, RENDERING, words=True, ocr_pages=1),
        lambda: list(read_documents([str(scan)] * 3, RENDERING, words=True, ocr_pages=1)),
    ):
        with pytest.raises(ModuleNotFoundError, match=r'pip install "docvit\[ocr\]"'):
            read()
