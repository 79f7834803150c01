"""The words of a page with their boxes: from PDFium's text page, or from poppler's `pdftotext -bbox`.

What comes out is clean, whatever the file says: words without white space, in Unicode's compatibility form (NFKC, so
that the ligature "ﬁ" reads "fi"), without control, format, private and unassigned characters and lone surrogates, each
with a box on the page. Invisible text counts: it is how OCR software writes into a scan.
"""

from __future__ import annotations

import ctypes
import html
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, compress, repeat
from typing import Any, NamedTuple, overload
from unicodedata import normalize

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium
from numpy.typing import NDArray

from docvit.documents.rendering import Box

MAX_CHARACTERS = 20_000  # per page

_IN_WORD = np.array([not chr(code).isspace() for code in range(0x3002)])  # there is no white space above
_LINE_ENDS = "\x02\ufffe"  # PDFium's hyphens at the end of a line, within a word
_POPPLER_WORD = re.compile(r'<word xMin="([^"]*)" yMin="([^"]*)" xMax="([^"]*)" yMax="([^"]*)">([^<]*)</word>')
_POPPLER_BYTES = 160 * MAX_CHARACTERS  # a line of `pdftotext -bbox` about one letter is shorter than that


class Word(NamedTuple):
    """A word and its box: left, top, right, bottom as fractions (0 to 1) of the page as it is drawn."""

    text: str
    box: Box


@dataclass(frozen=True, eq=False)
class Words(Sequence[Word]):
    """The words of one page in the file's reading order, as a sequence that is cheap to send between processes.

    Args:
        texts: the words.
        boxes: (n, 4) float32, their boxes.
        source: where they come from: "text" (the PDF's text layer), "ocr", or None where there are none.
    """

    texts: tuple[str, ...] = ()
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    source: str | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> Word: ...
    @overload
    def __getitem__(self, index: slice) -> list[Word]: ...
    def __getitem__(self, index: int | slice) -> Word | list[Word]:
        if isinstance(index, slice):
            return list(self)[index]
        return Word(self.texts[index], tuple(self.boxes[index].tolist()))

    def __iter__(self) -> Iterator[Word]:
        return (Word(text, tuple(box)) for text, box in zip(self.texts, self.boxes.tolist(), strict=True))

    def select(self, keep: NDArray[np.bool_]) -> Words:
        """The words where `keep` (n,) is true."""
        return Words(tuple(compress(self.texts, keep)), self.boxes[keep], self.source)

    def within(self, part: Box) -> Words:
        """Those whose middle lies in a part of the page, their boxes as fractions of the part."""
        left, top, right, bottom = part
        x, y = ((self.boxes[:, :2] + self.boxes[:, 2:]) / 2).T
        found = self.select((x >= left) & (x < right) & (y >= top) & (y < bottom))
        boxes = (found.boxes - [left, top, left, top]) / [right - left, bottom - top, right - left, bottom - top]
        return replace(found, boxes=boxes.clip(0, 1).astype(np.float32)) if found else Words()

    def turn(self, quarters: int) -> Words:
        """Where they lie on the page turned clockwise by so many quarters."""
        return replace(self, boxes=_turned(self.boxes, quarters))


def _turned(boxes: NDArray[Any], quarters: int) -> NDArray[Any]:
    for _ in range(quarters % 4):
        left, top, right, bottom = boxes.T
        boxes = np.stack([1 - bottom, left, 1 - top, right], 1)
    return boxes


def clean_words(texts: Sequence[str], boxes: NDArray[np.floating], source: str) -> Words:
    """Words from what a reader found: `boxes` (n, 4) are fractions of the page, cut off at its edges here.

    `texts` are without white space. Left out is what has no letters after cleaning, lies outside the page or has no box
    (empty, or not finite), and what follows the first `MAX_CHARACTERS` characters.
    """
    exact = np.asarray(boxes, np.float64).reshape(-1, 4)
    cut = exact.clip(0, 1).astype(np.float32)
    kept = np.all(np.isfinite(exact) & (cut < cut[:, [2, 3, 2, 3]])[:, [0, 1, 0, 1]], axis=1)
    if not kept.any():
        return Words()
    clean = _clean("\n".join(compress(texts, kept))).split("\n")
    lengths = np.fromiter(map(len, clean), int, len(clean))
    chosen = (lengths > 0) & (lengths.cumsum() <= MAX_CHARACTERS)
    found = tuple(compress(clean, chosen))
    return Words(found, cut[kept][chosen], source) if found else Words()


def _clean(lines: str) -> str:
    text = lines if lines.isascii() else normalize("NFKC", lines)
    for noise in {c for c in set(text) if not c.isprintable() or c in " \ufffd"} - {"\n"}:
        text = text.replace(noise, "")
    return text


def _fast(function: object, *arguments: type) -> ctypes._FuncPointer:
    """A function of PDFium that takes addresses: half the time of a call with typed pointers."""
    address = ctypes.cast(function, ctypes.c_void_p).value  # type: ignore[arg-type]
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, *arguments)(address or 0)


_count_rects = _fast(pdfium.FPDFText_CountRects, ctypes.c_int, ctypes.c_int)
_get_rect = _fast(pdfium.FPDFText_GetRect, ctypes.c_int, *[ctypes.c_void_p] * 4)
_char_index = _fast(pdfium.FPDFText_GetCharIndexFromTextIndex, ctypes.c_int)


def pdfium_words(page: pypdfium2.PdfPage) -> Words:
    """The words of an open page of PDFium's."""
    text_page = pdfium.FPDFText_LoadPage(page)
    if not text_page:
        return Words()
    try:
        texts, rectangles = _read_text_page(text_page)
    finally:
        pdfium.FPDFText_ClosePage(text_page)
    return clean_words(texts, _as_drawn(rectangles, page), "text") if texts else Words()


def _read_text_page(text_page: ctypes._Pointer) -> tuple[list[str], NDArray[np.float64]]:
    """Words and their rectangles (left, top, right, bottom in points, y upwards).

    The whole text is fetched by one call and the rectangle of a word by two: calls are what this costs, so they are
    made by iterators, without Python's loop around them.
    """
    count = min(pdfium.FPDFText_CountChars(text_page), MAX_CHARACTERS)
    if count < 1:
        return [], np.zeros((0, 4))
    units = (ctypes.c_ushort * (2 * count + 2))()  # a character may be two units of UTF-16
    written = pdfium.FPDFText_GetText(text_page, 0, count, units)
    text = memoryview(units).cast("B")[: 2 * max(written - 1, 0)].tobytes().decode("utf-16-le", "replace")
    texts = text.split()
    handle = ctypes.cast(text_page, ctypes.c_void_p).value
    starts, lengths = _spans(text)
    if len(text) != count:  # some characters have no text: their indices must be looked up
        ends = map(_char_index, repeat(handle), (starts + lengths - 1).tolist())
        starts = np.fromiter(map(_char_index, repeat(handle), starts.tolist()), int, len(texts))
        lengths = np.fromiter(ends, int, len(texts)) + 1 - starts
    rectangles = np.full((len(texts), 4), np.nan)
    spans, corners = (starts.tolist(), lengths.tolist()), _addresses(rectangles)
    # `zip` takes from both in turns: PDFium gives the first of the rectangles that it has counted last
    counts, gets = map(_count_rects, repeat(handle), *spans), map(_get_rect, repeat(handle), repeat(0), *corners)
    found = [pieces for pieces, _ in zip(counts, gets, strict=False)]
    several = [i for i, pieces in enumerate(found) if pieces > 1]
    if several:
        rectangles[several] = _around(handle, [(spans[0][i], spans[1][i], found[i]) for i in several])
    return texts, rectangles


def _spans(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the words of `text.split()` start and how long they are; a hyphenated one ends with its first line."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.int32)
    inside = np.zeros(len(codes) + 2, bool)
    inside[1:-1] = _IN_WORD.take(codes, mode="clip")
    starts, ends = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2).T
    for mark in _LINE_ENDS:
        if mark in text:
            for hyphen in np.flatnonzero(codes == ord(mark))[::-1].tolist():
                word = int(starts.searchsorted(hyphen, "right")) - 1
                ends[word] = max(hyphen, starts[word] + 1)
    return starts, ends - starts


def _around(handle: int | None, words: list[tuple[int, int, int]]) -> NDArray[np.float64]:
    """The rectangles around words that are drawn in several pieces, by their start, length and number of pieces."""
    firsts = list(accumulate((pieces for _, _, pieces in words[:-1]), initial=0))
    rectangles = np.full((firsts[-1] + words[-1][2], 4), np.nan)
    corners = zip(*_addresses(rectangles), strict=True)
    for start, length, pieces in words:
        _count_rects(handle, start, length)
        for piece in range(pieces):
            _get_rect(handle, piece, *next(corners))
    low, high = np.minimum.reduceat(rectangles, firsts), np.maximum.reduceat(rectangles, firsts)
    return np.stack([low[:, 0], high[:, 1], high[:, 2], low[:, 3]], 1)


def _addresses(rectangles: NDArray[np.float64]) -> list[range]:
    """The addresses of the four numbers of each rectangle."""
    first = rectangles.ctypes.data
    return [range(first + 8 * i, first + 8 * i + 32 * len(rectangles), 32) for i in range(4)]


def _as_drawn(rectangles: NDArray[np.float64], page: pypdfium2.PdfPage) -> NDArray[np.float64]:
    """Rectangles in points, y upwards, as fractions of the page's box, y downwards, turned as the page is shown."""
    box = pdfium.FS_RECTF()
    pdfium.FPDF_GetPageBoundingBox(page, box)
    corner, size = (box.left, box.top) * 2, (box.right - box.left, box.bottom - box.top) * 2
    with np.errstate(all="ignore"):  # a page without size has no words
        return _turned((rectangles - corner) / size, pdfium.FPDFPage_GetRotation(page))


def poppler_words(file: str, index: int, size: tuple[float, float], *, timeout: float) -> Words:
    """The words of page `index` (0-based) by `pdftotext -bbox`.

    `size` is the page's, in points and turned as it is shown: poppler's own answer gives it before the turn. What takes
    longer than `timeout` seconds gives no words. Raises OSError where the program is missing.
    """
    command = ["pdftotext", "-bbox", "-cropbox", "-q", "-enc", "UTF-8", "-f", str(index + 1), "-l", str(index + 1)]
    with subprocess.Popen([*command, file, "-"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            answer = process.stdout.read(_POPPLER_BYTES).decode("utf-8", "replace")
        finally:
            timer.cancel()
            process.kill()
    found = _POPPLER_WORD.findall(answer)
    boxes = np.array([word[:4] for word in found], float).reshape(-1, 4) / (size * 2)
    return clean_words(["".join(html.unescape(word[4]).split()) for word in found], boxes, "text")
