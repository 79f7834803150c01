"""A file becomes pages: PDF, multi-page TIFF, a single image or a folder of page images.

Pages are rendered one at a time, at the size the model wants, so that memory does not grow with their number. Whatever
goes wrong with a file is one `DocumentError` whose message says what to do about it.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from textwrap import shorten
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from docvit.documents.errors import DocumentError, Empty, NotFound, Unreadable, Unsupported
from docvit.documents.finding import entries_of
from docvit.documents.formats import SUFFIXES, looks_like, suffix_of
from docvit.documents.images import ImagePages
from docvit.documents.ocr import OCR_SIZE, ocr_words
from docvit.documents.renderers import INSTALL_POPPLER, PdfiumPages, PopplerPages
from docvit.documents.rendering import WHOLE, Box, Renderer, Rendering, parts_of
from docvit.documents.sources import PAGE_SUFFIXES, Data, Source, as_source
from docvit.documents.words import Word, Words

if TYPE_CHECKING:  # worker processes need no torch
    from torch import Tensor

logger = logging.getLogger(__name__)


class PageStack(NamedTuple):
    """The pages read of one document.

    Attributes:
        path: the document's path, or what stands for it.
        pages: uint8 arrays (H, W) or (H, W, 3); in training, normalised float tensors (C, H, W).
        indices: the 0-based page index of each. Parts of a page that was cut count as pages.
        num_pages: pages of the document.
        words: the words of each page in `pages`; none at all where they were not asked for.
        failed: page index -> why that page could not be read.
        ocr_failed: page index -> why OCR, which was asked for, failed on it; the page itself is there.
        note: what a reader should know of the document; empty if nothing.
    """

    path: str
    pages: Sequence[NDArray[np.uint8] | Tensor]
    indices: list[int]
    num_pages: int
    words: Sequence[Words] = ()
    failed: Mapping[int, str] = {}
    note: str = ""
    ocr_failed: Mapping[int, str] = {}

    @property
    def words_read(self) -> int:
        """Number of words on all pages read."""
        return sum(map(len, self.words))

    @property
    def words_from(self) -> str | None:
        """ "text" where a page read has a text layer, else "ocr" where one was read by OCR, else None."""
        sources = {page.source for page in self.words}
        return next((source for source in ("text", "ocr") if source in sources), None)

    def take(self, positions: Iterable[int]) -> PageStack:
        """The pages at these positions of the stack, with their words."""
        positions = list(positions)
        return self._replace(
            pages=[self.pages[i] for i in positions],
            indices=[self.indices[i] for i in positions],
            words=[self.words[i] for i in positions if self.words],
        )

    def turn(self, quarters: Sequence[int]) -> PageStack:
        """Each page, with its words, turned clockwise by so many quarters."""
        return self._replace(
            pages=[_turn(page, k) for page, k in zip(self.pages, quarters, strict=True)],
            words=[words.turn(k) for words, k in zip(self.words, quarters, strict=False)],
        )


class Document(Sequence[Image.Image]):
    """The pages of an open document as a lazy sequence: `document[i]` draws page i now, nothing is kept.

    Reading a page raises a `DocumentError` when that page is damaged or too large. Use it as a context manager, or call
    `close()`, to let go of the file.
    """

    def __init__(self, path: str, renderer: Renderer, rendering: Rendering) -> None:
        self.path = path
        self.rendering = rendering
        self.num_pages = renderer.num_pages
        self._renderer = renderer

    def __len__(self) -> int:
        return self.num_pages

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        chosen = range(self.num_pages)[index]
        return self.render(chosen) if isinstance(chosen, int) else [self.render(i) for i in chosen]

    def __iter__(self) -> Iterator[Image.Image]:
        return map(self.render, range(self.num_pages))

    def __enter__(self) -> Document:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def note(self) -> str:
        """What a reader should know of the document: a portfolio, an image that is cut off; empty if nothing."""
        return self._renderer.note

    def size(self, index: int) -> tuple[float, float]:
        """Width and height of page `index` as it is shown, in points or pixels."""
        return self._renderer.size(range(self.num_pages)[index])

    def render(self, index: int, rendering: Rendering | None = None, box: Box = WHOLE) -> Image.Image:
        """Page `index` (0-based), or the part of it in `box`, drawn as this document's rendering, or another, says."""
        return self._renderer.render(range(self.num_pages)[index], rendering or self.rendering, box)

    def words(self, index: int) -> list[Word]:
        """The words of page `index` (0-based) with their boxes, in the file's reading order; a scan has none."""
        return list(self.read_words(index))

    def read_words(self, index: int) -> Words:
        """The words of page `index` (0-based) as arrays. A text layer that cannot be read has none."""
        index = range(self.num_pages)[index]
        try:
            return self._renderer.words(index)
        except Exception as error:
            logger.debug("%s: the words of page %d cannot be read (%s)", self.path, index + 1, error)
            return Words()

    def read_by_ocr(self, index: int, box: Box = WHOLE) -> Words:
        """The words that OCR finds on page `index` (0-based), or on the part of it in `box`, as fractions of that part.

        Raises:
            ModuleNotFoundError: `docvit[ocr]` is not installed.
        """
        sharp = replace(self.rendering, size=OCR_SIZE, multiple=1, supersample=1, mode="RGB")
        return ocr_words(self.render(index, sharp, box))

    def close(self) -> None:
        self._renderer.close()


def _turn(page: NDArray[np.uint8] | Tensor, quarters: int) -> NDArray[np.uint8] | Tensor:
    if isinstance(page, np.ndarray):
        return np.ascontiguousarray(np.rot90(page, -quarters))
    return page.rot90(-quarters, (1, 2))


def open_document(data: Data | Source, rendering: Rendering = Rendering(), *, password: str | None = None) -> Document:
    """Open a PDF, an image, a multi-page TIFF or a folder of page images. What a file is, its content says.

    Args:
        data: a path, the bytes of a file, a binary file object, a PIL image, or a list of page images or their files.
        password: opens a PDF that has one.

    Raises:
        DocumentError: NotFound, Unreadable, Encrypted, Empty, TooLarge, Timeout or Unsupported.
        ValueError: `data` is nothing of this.
    """
    source = as_source(data)
    return Document(source.name, _renderer_of(source, rendering, password), rendering)


def _renderer_of(source: Source, rendering: Rendering, password: str | None) -> Renderer:
    name, content = source.name, source.content
    if isinstance(content, tuple):
        return _PageFiles(name, content)
    if isinstance(content, Image.Image):
        return ImagePages(name, content)
    if isinstance(content, str):
        status = _stat(content)
        if stat.S_ISDIR(status.st_mode):
            return _PageFiles(name, _pages_in(content))
        if not stat.S_ISREG(status.st_mode):
            raise Unsupported(name, "this is not a regular file but a device, pipe or socket: save its content")
        length = status.st_size
    else:
        length = len(content)
    if length == 0:
        raise Empty(name, "the file has no content: it was probably cut off on its way here, fetch it again")
    return _open_file(name, content, rendering, password)


def read_document(
    data: Data | Source,
    rendering: Rendering = Rendering(),
    *,
    max_pages: int | None = 64,
    words: bool = False,
    ocr_pages: int = 0,
    password: str | None = None,
    cut_pages: bool = True,
) -> PageStack:
    """Read a document's pages into arrays, at most `max_pages` of them, spread evenly.

    A damaged page is left out and stands in `failed`. Raises like `open_document`, and where no page can be read.

    Args:
        words: read their words, too.
        ocr_pages: of the document's first so many pages, those without a text layer are read by OCR for their words.
        cut_pages: read a page far longer than wide, or wider than high, in parts, each of which counts as a page.
    """
    with open_document(data, rendering, password=password) as document:
        pages: list[NDArray[np.uint8]] = []
        indices: list[int] = []
        found: list[Words] = []
        failed: dict[int, DocumentError] = {}
        ocr_failed: dict[int, str] = {}
        chosen, num_pages, note = _parts(document, max_pages, cut_pages)
        for index, page, box in chosen:
            try:
                pages.append(np.array(document.render(page, box=box)))
                indices.append(index)
            except DocumentError as error:
                failed[index] = error
                continue
            if words:
                of_page = document.read_words(page)
                if of_page and box != WHOLE:
                    of_page = of_page.within(box)
                elif not of_page and index < ocr_pages:
                    try:
                        of_page = document.read_by_ocr(page, box)
                    except ModuleNotFoundError:
                        raise
                    except Exception as error:
                        ocr_failed[index] = shorten(str(error), 200)
                found.append(of_page)
        if not pages:
            raise next(iter(failed.values()))
        notes = "; ".join(n for n in (document.note, note) if n)
        reasons = {i: error.message for i, error in failed.items()}
        return PageStack(document.path, pages, indices, num_pages, found, reasons, notes, ocr_failed)


def _parts(document: Document, max_pages: int | None, cut_pages: bool) -> tuple[list[tuple[int, int, Box]], int, str]:
    """What is read: (index, page, part of it), how many pages the document has with parts for pages, and a note."""
    parts: list[tuple[int, int, Box]] = []
    more, cut = 0, []
    for page in spread(document.num_pages, max_pages):
        boxes = _boxes(document, page) if cut_pages else [WHOLE]
        parts += [(page + more + i, page, box) for i, box in enumerate(boxes)]
        more += len(boxes) - 1
        cut += [str(page + 1)] if len(boxes) > 1 else []
    note = f"far from the proportions of a page, read in parts: page {', '.join(cut)}" if cut else ""
    chosen = [parts[i] for i in spread(len(parts), max_pages)]
    return chosen, document.num_pages + more, note


def _boxes(document: Document, page: int) -> list[Box]:
    try:
        width, height = document.size(page)
    except DocumentError:  # drawing it says so again
        return [WHOLE]
    return parts_of(width, height) if width > 0 and height > 0 else [WHOLE]


def spread(num_pages: int, max_pages: int | None) -> list[int]:
    """0-based indices of at most `max_pages` pages spread evenly; the first and the last are in (the first if one)."""
    if max_pages is not None and max_pages < 1:
        raise ValueError(f"max_pages must be at least 1, not {max_pages}")
    if max_pages is None or num_pages <= max_pages:
        return list(range(num_pages))
    if max_pages == 1:
        return [0]
    return [(2 * i * (num_pages - 1) + max_pages - 1) // (2 * (max_pages - 1)) for i in range(max_pages)]


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise NotFound(path, "there is no such file or folder: check the path") from None
    except OSError as error:
        raise Unreadable(path, f"the system does not give access to it ({error.strerror})") from None


def _open_file(name: str, content: str | bytes, rendering: Rendering, password: str | None) -> Renderer:
    head = _head(content)
    if b"%PDF-" in head:
        return _open_pdf(name, content, rendering, password)
    looks = looks_like(head)
    if looks.endswith("image") and suffix_of(name) != ".pdf":
        return ImagePages(name, content)
    if suffix_of(name) not in SUFFIXES:
        raise Unsupported(name, f"this is {looks}; PDF, TIFF and page images are read: export it as PDF")
    todo = "give it the suffix of an image" if looks.endswith("image") else "export it as PDF or fetch it again"
    raise Unreadable(name, f"its content is not what its name says but {looks}: {todo}")


def _head(content: str | bytes) -> bytes:
    if isinstance(content, bytes):
        return content[:1024]
    try:
        with open(content, "rb") as file:
            return file.read(1024)
    except OSError as error:
        raise Unreadable(content, f"the file cannot be opened ({error.strerror}): check its permissions") from None


def _open_pdf(name: str, content: str | bytes, rendering: Rendering, password: str | None) -> Renderer:
    if rendering.renderer == "poppler":
        return PopplerPages(name, content, password)
    try:
        return PdfiumPages(name, content, password)
    except Unreadable as error:
        if shutil.which("pdftoppm") is None:
            raise Unreadable(name, f"{error.message}; or {INSTALL_POPPLER}") from None
        try:
            pages = PopplerPages(name, content, password)
        except (Unreadable, Empty):
            raise error from None
        logger.warning("%s: PDFium cannot open it, poppler draws it instead", name)
        return pages


def _pages_in(path: str) -> tuple[Source, ...]:
    """The page images in a folder."""
    if suffix_of(path) in SUFFIXES:
        raise Unsupported(path, "this is a folder with a file's name: name the files in it, or rename it")
    try:
        files = [e.path for e in entries_of(path) if suffix_of(e.name) in PAGE_SUFFIXES and os.path.isfile(e)]
    except OSError as error:
        raise Unreadable(path, f"the folder cannot be opened ({error.strerror}): check its permissions") from None
    if not files:
        suffixes = ", ".join(PAGE_SUFFIXES)
        raise Empty(path, f"the folder itself holds no page images ({suffixes}): name the documents in it")
    return tuple(as_source(file) for file in files)


class _PageFiles:
    """Page images, in a folder or in a list; each is a page."""

    def __init__(self, path: str, pages: Sequence[Source]) -> None:
        self.path, self.note = path, ""
        self._pages = pages
        self.num_pages = len(pages)
        if not pages:
            raise Empty(path, "a list without pages")

    def size(self, index: int) -> tuple[float, float]:
        with open_document(self._pages[index]) as page:
            return page.size(0)

    def render(self, index: int, rendering: Rendering, box: Box = WHOLE) -> Image.Image:
        try:
            with open_document(self._pages[index], rendering) as page:
                if len(page) > 1:
                    raise Unsupported(page.path, f"it has {len(page)} pages, and a list or folder holds single ones")
                image = page.render(0, box=box)
                self.note = self.note or page.note
                return image
        except DocumentError as error:
            raise type(error)(self.path, f"{os.path.basename(error.path)}: {error.message}") from None

    def words(self, index: int) -> Words:
        return Words()

    def close(self) -> None: ...
