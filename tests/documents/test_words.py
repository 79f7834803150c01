"""Words at their boxes: where they are drawn, whatever turns the page, and what a text layer that lies gives."""

from __future__ import annotations

import logging
import pickle
import shutil
import time
from dataclasses import replace

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from docvit.documents import renderers
from docvit.documents.cache import CachedDocument, PageCache
from docvit.documents.pages import PageStack, open_document, read_document
from docvit.documents.rendering import Rendering
from docvit.documents.words import MAX_CHARACTERS, Word, Words, clean_words
from docvit.documents.workers import read_documents

RENDERING = Rendering(size=512, mode="L")
needs_poppler = pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs poppler")


def to_unicode(codes: dict[str, str]) -> bytes:
    """A CMap that says what each character code means; the meaning is given in hexadecimal UTF-16."""
    lines = "".join(f"<{ord(code):02x}> <{meaning}>\n" for code, meaning in codes.items())
    head = "/CIDInit /ProcSet findresource begin 12 dict begin begincmap /CMapName /U def /CMapType 2 def\n"
    span = "1 begincodespacerange <00> <ff> endcodespacerange\n"
    tail = "endbfchar endcmap CMapName currentdict /CMap defineresource pop end end"
    return f"{head}{span}{len(codes)} beginbfchar\n{lines}{tail}".encode()


@pytest.fixture
def write(make_pdf):
    """`write("a.pdf", content, ...)` gives the path of a PDF whose pages have these contents in Courier, 612 x 792."""

    def make(name, *contents, extra="", encoding="/Encoding/WinAnsiEncoding", unicode=None, pages=None):
        from conftest import assemble

        pages = pages or [(612, 792)] * len(contents)
        meaning = "/ToUnicode 3 0 R" if unicode else ""
        font = f"<</Type/Font/Subtype/Type1/BaseFont/Courier{encoding}{meaning}>>"
        cmap = to_unicode(unicode or {})
        kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(contents)))
        objects = [
            b"<</Type/Catalog/Pages 2 0 R>>",
            f"<</Type/Pages/Kids[{kids}]/Count {len(contents)}>>".encode(),
            b"<</Length %d>>stream\n%s\nendstream" % (len(cmap), cmap),
        ]
        for i, ((width, height), drawn) in enumerate(zip(pages, contents, strict=True)):
            page = f"/MediaBox[0 0 {width} {height}]/Resources<</Font<</F1 {font}>>>>{extra}/Contents {5 + 2 * i} 0 R"
            objects.append(f"<</Type/Page/Parent 2 0 R{page}>>".encode())
            objects.append(b"<</Length %d>>stream\n%s\nendstream" % (len(drawn), drawn))
        path = make_pdf(name)
        path.write_bytes(assemble(objects))
        return path

    return make


def say(text: bytes, x: float = 100, y: float = 600, size: float = 40, matrix: bytes = b"1 0 0 1") -> bytes:
    return b"BT /F1 %f Tf %s %f %f Tm (%s) Tj ET\n" % (size, matrix, x, y, text)


def words_of(path, renderer="pdfium", index=0) -> list[Word]:
    with open_document(path, replace(RENDERING, renderer=renderer)) as document:
        return document.words(index)


def texts_of(path, **options) -> list[str]:
    return [word.text for word in words_of(path, **options)]


def ink_box(path) -> np.ndarray:
    """Where the page has ink, as fractions: independent of everything that a text layer says."""
    dark = read_document(path, replace(RENDERING, multiple=1, supersample=1)).pages[0] < 128
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / ([*dark.shape[::-1]] * 2)


# --- boxes

EXTRAS = ("", "/CropBox[50 300 500 750]", "/UserUnit 2.5", "/CropBox[50 300 500 750]/UserUnit 0.5")
MATRICES = {
    "upright": b"1 0 0 1", "upwards": b"0 1 -1 0", "downwards": b"0 -1 1 0", "upside down": b"-1 0 0 -1",
    "slanted": b"0.9 0.3 -0.3 0.9", "italic": b"1 0 0.4 1", "mirrored": b"-1 0 0 1",
}  # fmt: skip


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("rotate", [0, 90, 180, 270, -90])
def test_a_box_lies_on_the_ink_of_its_word_however_the_page_is_turned_and_cut(write, rotate, extra):
    path = write("a.pdf", say(b"Kpgd", 120, 640), extra=f"/Rotate {rotate}{extra}")
    ((text, box),) = words_of(path)
    assert text == "Kpgd"
    np.testing.assert_allclose(box, ink_box(path), atol=0.03)


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("rotate", [0, 90])
def test_a_box_lies_on_the_ink_of_its_word_however_the_text_is_turned(write, rotate, matrix):
    path = write("a.pdf", say(b"Kpgd", 300, 500, matrix=matrix), extra=f"/Rotate {rotate}")
    box = np.array([word.box for word in words_of(path)])
    around = [*box[:, :2].min(0), *box[:, 2:].max(0)]
    np.testing.assert_allclose(around, ink_box(path), atol=0.04)


def test_words_of_one_line_have_boxes_of_their_own(write):
    words = words_of(write("a.pdf", say(b"Hello  wide, world", 60, size=20)))
    assert [word.text for word in words] == ["Hello", "wide,", "world"]
    for word, (start, end) in zip(words, ((0, 5), (7, 12), (13, 18)), strict=True):  # 12 points per character
        expected = np.array([60 + 12 * start, 60 + 12 * end]) / 612
        np.testing.assert_allclose([word.box[0], word.box[2]], expected, atol=0.01)  # a comma fills half its width


def test_a_word_drawn_in_pieces_is_one_word(write):
    content = b"BT /F1 20 Tf 60 600 Td (Hel) Tj (lo) Tj ( world) Tj ET"
    hello, world = words_of(write("a.pdf", content))
    assert (hello.text, world.text) == ("Hello", "world")
    np.testing.assert_allclose([hello.box[0], hello.box[2]], np.array([60, 120]) / 612, atol=4e-3)


def test_words_come_in_the_order_of_the_file(write):
    path = write("a.pdf", say(b"low", 100, 100) + say(b"high", 100, 700) + say(b"middle", 100, 400))
    assert texts_of(path) == ["low", "high", "middle"]


def test_a_hyphenated_word_counts_where_it_begins(write):
    path = write("a.pdf", b"BT /F1 20 Tf 24 TL 400 600 Td (an exam-) Tj T* (ple here) Tj ET")
    words = {word.text: word.box for word in words_of(path)}
    assert set(words) == {"an", "example", "here"}
    assert words["example"][0] > 400 / 612
    assert words["example"][3] - words["example"][1] < 30 / 792


@needs_poppler
@pytest.mark.parametrize(
    "extra", ["", "/Rotate 90", "/Rotate 180", "/Rotate 270", "/CropBox[50 300 500 700]/Rotate 90", "/UserUnit 2"]
)
def test_poppler_says_the_same_words_at_the_same_boxes(write, extra):
    content = say(b"Kpgd first line", 80, 640, 20) + say(b"second, \\(line\\) & <more>", 80, 400, 20)
    path = write("a.pdf", content, extra=extra)
    ours, theirs = dict(words_of(path)), dict(words_of(path, renderer="poppler"))  # it turns the order, too
    assert ours.keys() == theirs.keys() == {"Kpgd", "first", "line", "second,", "(line)", "&", "<more>"}
    for text, box in ours.items():
        np.testing.assert_allclose(box, theirs[text], atol=0.03)


@needs_poppler
def test_poppler_reads_the_page_that_is_asked_for(write):
    path = write("a.pdf", say(b"one"), say(b"two"))
    assert texts_of(path, renderer="poppler", index=1) == ["two"]


def test_without_pdftotext_poppler_gives_no_words_and_no_error(write, monkeypatch):
    path = write("a.pdf", say(b"one"))
    with open_document(path) as document:
        document._renderer.words = lambda index: renderers.poppler_words(str(path), index, (612, 792), timeout=5)
        monkeypatch.setenv("PATH", "")
        assert document.words(0) == []


# --- files without words


def test_images_and_drawn_pages_have_no_words(tmp_path, make_pdf):
    (tmp_path / "scan").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "a.tif", tmp_path / "scan" / "p1.png"):
        Image.new("L", (90, 120), 255).save(path)
    for path in (tmp_path / "a.png", tmp_path / "a.tif", tmp_path / "scan", make_pdf()):
        assert words_of(path) == []
        stack = read_document(path, RENDERING, words=True)
        assert (stack.words_read, stack.words_from, len(stack.words)) == (0, None, len(stack.pages))


def test_invisible_text_over_a_scan_counts(write):
    path = write("a.pdf", b"3 Tr " + say(b"invoice"))
    assert texts_of(path) == ["invoice"]
    assert read_document(path, RENDERING).pages[0].min() == 255


# --- text layers that lie


def test_what_codes_mean_may_be_noise(write):
    codes = {"A": "0007", "B": "D800", "C": "E000", "D": "0378", "E": "200B", "F": "FFFD", "G": "0078"}
    assert texts_of(write("a.pdf", say(b"ABC DEF EGA FFF"), unicode=codes)) == ["x"]


def test_letters_without_a_meaning_do_no_harm(write):
    encoding = "/Encoding<</Type/Encoding/Differences[65/g001/g002/g003]>>"
    for text in texts_of(write("a.pdf", say(b"ABC CAB"), encoding=encoding)):
        assert text.isprintable()
        assert " " not in text


def test_ligatures_become_letters(write):
    path = write("a.pdf", say(b"A A"), unicode={"A": "FB03"})
    assert texts_of(path) == ["ffi", "ffi"]
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (3, 1))
    assert clean_words(["\ufb01n", "\uff21b", "\u00b2"], boxes, "text").texts == ("fin", "Ab", "2")


@pytest.mark.parametrize("content", [b" " * 500, b"\\240" * 500, b"\\t \\r\\n"])
def test_a_page_of_spaces_has_no_words(write, content):
    assert texts_of(write("a.pdf", say(content, size=4))) == []


ONE_STRING_PER_LINE = b"".join(b"1 0 0 1 10 %f Tm (%s) Tj\n" % (5 + 0.78 * i, b"a " * 1000) for i in range(1000))
ONE_STRING_PER_WORD = b"".join(b"1 0 0 1 %d %d Tm (a) Tj\n" % (3 * i % 600, 10 + i // 200) for i in range(100_000))


@pytest.mark.parametrize("renderer", ["pdfium", pytest.param("poppler", marks=needs_poppler)])
def test_a_million_one_letter_words_take_bounded_time_and_memory(write, renderer):
    path = write("a.pdf", b"BT /F1 0.48 Tf\n" + ONE_STRING_PER_LINE + b"ET")
    with open_document(path, replace(RENDERING, renderer=renderer)) as document:
        started = time.process_time()
        words = document.words(0)
        assert time.process_time() - started < 20
    assert 5000 <= len(words) <= MAX_CHARACTERS
    assert {word.text for word in words} == {"a"}


def test_words_written_one_by_one_take_bounded_time(write):
    started = time.process_time()
    texts = texts_of(write("a.pdf", b"BT /F1 0.48 Tf\n" + ONE_STRING_PER_WORD + b"ET"))
    assert time.process_time() - started < 20
    assert 5000 <= len(texts) <= MAX_CHARACTERS


@needs_poppler
def test_poppler_is_stopped_where_it_takes_too_long(write):
    path = write("a.pdf", b"BT /F1 0.48 Tf\n" + ONE_STRING_PER_WORD + b"ET")
    started = time.monotonic()
    assert len(renderers.poppler_words(str(path), 0, (612, 792), timeout=0.5)) == 0
    assert time.monotonic() - started < 5


def test_a_single_word_without_end_is_cut(write):
    (word,) = words_of(write("a.pdf", say(b"a" * 100_000, 0, size=1)))
    assert set(word.text) == {"a"}
    assert len(word.text) == MAX_CHARACTERS


def test_text_from_right_to_left_is_words_in_reading_order(write):
    letters = {"A": "05DD", "B": "05DC", "C": "05D5", "D": "05E2", "E": "05D0"}  # as they stand on paper
    first, second = words_of(write("a.pdf", say(b"ABCD EABC"), unicode=letters))
    assert (first.text, second.text) == ("\u05d5\u05dc\u05dd\u05d0", "\u05e2\u05d5\u05dc\u05dd")
    assert 100 / 612 < second.box[0] + 0.01 < second.box[2] < first.box[0] < first.box[2] < 317 / 612


def test_text_written_downwards_has_boxes_down_the_page(write):
    letters = b"".join(say(b"%c" % letter, 100, 700 - 50 * i) for i, letter in enumerate(b"ABCD"))
    words = words_of(write("a.pdf", letters))
    assert "".join(word.text for word in words) == "ABCD"
    tops = [word.box[1] for word in words]
    assert tops == sorted(tops)


def test_a_word_wider_than_the_page_ends_with_the_page(write):
    ((text, box),) = words_of(write("a.pdf", say(b"wide" * 30, -200)))
    assert text == "wide" * 30
    assert (box[0], box[2]) == (0, 1)
    assert 0 < box[1] < box[3] < 1


def test_words_outside_the_page_or_without_a_box_are_left_out(write):
    content = say(b"outside", 700) + say(b"above", 100, 900) + say(b"in", 100) + say(b"flat", 100, matrix=b"0 0 0 0")
    content += say(b"far", 1e30, 1e30) + say(b"none", size=0)
    assert texts_of(write("a.pdf", content)) == ["in"]
    assert texts_of(write("b.pdf", content, extra="/CropBox[0 0 612 500]")) == []


def test_boxes_that_are_no_numbers_are_left_out():
    nan, inf = float("nan"), float("inf")
    boxes = [[0, 0, 1, 1], [nan, 0, 1, 1], [0, 0, nan, 1], [0, 0, inf, 1], [-inf, 0, 1, 1]]
    boxes += [[0.5, 0, 0.5, 1], [0.6, 0, 0.4, 1]]
    words = clean_words([*"abcdefg"], np.array(boxes), "text")
    assert words.texts == ("a",)
    assert words.boxes.tolist() == [[0, 0, 1, 1]]


def test_a_text_layer_of_another_document_changes_no_pixel(write, make_pdf):
    from conftest import strokes

    own = write("a.pdf", strokes(612, 792, 0))
    other = write("b.pdf", strokes(612, 792, 0) + b" 3 Tr " + say(b"Curriculum vitae"))
    assert texts_of(other) == ["Curriculum", "vitae"]
    np.testing.assert_array_equal(read_document(own).pages, read_document(other).pages)


def test_a_text_layer_that_fails_costs_nothing_but_the_words(write, monkeypatch, caplog):
    def fails(page):
        raise OSError("no text")

    path = write("a.pdf", say(b"one"), say(b"two"))
    expected = read_document(path, RENDERING)
    monkeypatch.setattr(renderers, "pdfium_words", fails)
    with caplog.at_level(logging.DEBUG, "docvit"):
        stack = read_document(path, RENDERING, words=True)
    np.testing.assert_array_equal(stack.pages, expected.pages)
    assert (stack.words_read, stack.words_from) == (0, None)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG] * 2


# --- stacks, workers, cache


@pytest.fixture
def three(write):
    return write("three.pdf", say(b"first page"), b"", say(b"last"))


def test_a_page_is_parsed_once_to_be_drawn_and_read(three, monkeypatch):
    opened = []
    get = pypdfium2.PdfDocument.get_page
    monkeypatch.setattr(pypdfium2.PdfDocument, "get_page", lambda self, i: opened.append(i) or get(self, i))
    monkeypatch.setattr(pypdfium2.PdfDocument, "__getitem__", pypdfium2.PdfDocument.get_page)
    read_document(three, RENDERING, words=True)
    assert opened == [0, 1, 2]


def test_words_are_read_only_when_wanted(three):
    assert len(read_document(three, RENDERING).words) == 0
    stack = read_document(three, RENDERING, words=True)
    assert [page.texts for page in stack.words] == [("first", "page"), (), ("last",)]
    assert (stack.words_read, stack.words_from) == (3, "text")
    np.testing.assert_array_equal(stack.pages, read_document(three, RENDERING).pages)


def test_pages_of_a_stack_take_their_words_along(three):
    stack = read_document(three, RENDERING, words=True).take([2, 0])
    assert stack.indices == [2, 0]
    assert [page.texts for page in stack.words] == [("last",), ("first", "page")]
    assert read_document(three, RENDERING).take([1]).words == []


def test_the_source_of_a_document_is_its_text_layer_if_it_has_one():
    pages = {source: Words(("a",), np.array([[0, 0, 1, 1]], np.float32), source) for source in ("text", "ocr")}
    stack = PageStack("a.pdf", [], [], 3)
    assert stack._replace(words=[Words(), pages["ocr"], pages["text"]]).words_from == "text"
    assert stack._replace(words=[Words(), pages["ocr"]]).words_from == "ocr"
    assert stack._replace(words=[Words()]).words_from is None


def same(a: Words, b: Words) -> bool:
    alike = a.boxes.dtype == b.boxes.dtype and np.array_equal(a.boxes, b.boxes)
    return alike and (a.texts, a.source) == (b.texts, b.source)


def test_words_are_a_sequence_and_cross_processes(three):
    words = read_document(three, RENDERING, words=True).words[0]
    assert list(words) == words[:] == [words[0], words[1]] == words_of(three)
    assert isinstance(words[0], Word)
    assert same(pickle.loads(pickle.dumps(words)), words)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_read_words(three, workers):
    (stack,) = read_documents([str(three)], RENDERING, words=True, workers=workers)
    expected = read_document(three, RENDERING, words=True)
    assert all(map(same, stack.words, expected.words))
    assert stack.words_read == 3


def test_the_cache_keeps_the_words_of_each_page(three, tmp_path):
    cache = PageCache(tmp_path / "cache", RENDERING, words=True)
    files, _ = cache.prepare([str(three)], workers=0)
    document = CachedDocument.open(files[str(three)])
    assert document.words_from == ("text", None, "text")
    expected = read_document(three, RENDERING, words=True)
    for indices in ([0, 1, 2], [2, 0], [1]):
        stack = document.load(indices)
        assert all(same(words, expected.words[i]) for words, i in zip(stack.words, indices, strict=True))


def test_a_cache_without_words_has_other_files_and_gives_none(three, tmp_path):
    settings = ((False, 0), (True, 0), (True, 1), (True, 2))
    caches = [PageCache(tmp_path, RENDERING, words=words, ocr_pages=pages) for words, pages in settings]
    assert len({cache.file(str(three)) for cache in caches}) == 4
    files, _ = caches[0].prepare([str(three)], workers=0)
    document = CachedDocument.open(files[str(three)])
    assert document.words_from is None
    assert len(document.load([0, 2]).words) == 0
