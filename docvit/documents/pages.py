"""A file becomes pages: PDF, multi-page TIFF, a single image or a folder of page images.

Pages are rendered one at a time, at the size the model wants, so that memory does not grow with their number. Whatever
goes wrong with a file is one `DocumentError` whose message says what to do about it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from docvit.documents.errors import DocumentError, Empty, NotFound, Unreadable, Unsupported
from docvit.documents.images import ImagePages
from docvit.documents.ocr import OCR_SIZE, ocr_words
from docvit.documents.renderers import INSTALL_POPPLER, PdfiumPages, PopplerPages
from docvit.documents.rendering import Renderer, Rendering
from docvit.documents.words import Word, Words

logger = logging.getLogger(__name__)

PAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")

SUFFIXES = (*PAGE_SUFFIXES, ".pdf", ".tif", ".tiff")

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"II+\0", "a TIFF image"),
    (b"MM\0+", "a TIFF image"),
    (b"PK\x03\x04", "a ZIP archive or an office document (docx, xlsx, pptx, odt)"),
    (b"\xd0\xcf\x11\xe0", "an old office document (doc, xls, ppt)"),
    (b"%!PS", "a PostScript file"),
    (b"{\\rtf", "an RTF document"),
    (b"\x1f\x8b", "a gzip archive"),
)


class PageStack(NamedTuple):
    """The pages read of one document: arrays (H, W) or (H, W, 3) of uint8, and their 0-based indices in it.

    `words` are the words of each page in `pages`; there are none at all where they were not asked for.
    """

    path: str
    pages: list[NDArray[np.uint8]]
    indices: list[int]
    num_pages: int
    words: Sequence[Words] = ()

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
        places = range(self.num_pages)[index]
        return self.render(places) if isinstance(places, int) else [self.render(place) for place in places]

    def __iter__(self) -> Iterator[Image.Image]:
        return map(self.render, range(self.num_pages))

    def __enter__(self) -> Document:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def render(self, index: int, rendering: Rendering | None = None) -> Image.Image:
        """Page `index` (0-based), drawn as this document's rendering, or another one, says."""
        return self._renderer.render(range(self.num_pages)[index], rendering or self.rendering)

    def words(self, index: int) -> list[Word]:
        """The words of page `index` (0-based) with their boxes, in the file's reading order; a scan has none."""
        return list(self.read_words(index))

    def read_words(self, index: int, *, ocr: bool = False) -> Words:
        """The words of page `index` (0-based) as arrays. A text layer or a scan that cannot be read has none.

        Args:
            ocr: read a page without words by OCR (ModuleNotFoundError without `docvit[ocr]`).
        """
        index = range(self.num_pages)[index]
        try:
            words = self._renderer.words(index)
            if words or not ocr:
                return words
            sharp = replace(self.rendering, size=OCR_SIZE, multiple=1, supersample=1, mode="RGB")
            return ocr_words(self._renderer.render(index, sharp))
        except ModuleNotFoundError:
            raise
        except Exception as error:
            logger.debug("%s: the words of page %d cannot be read (%s)", self.path, index + 1, error)
            return Words()

    def close(self) -> None:
        self._renderer.close()


def open_document(path: str | os.PathLike[str], rendering: Rendering = Rendering()) -> Document:
    """Open a PDF, an image, a multi-page TIFF or a folder of page images. What a file is, its content says.

    Raises a `DocumentError`: NotFound, Unreadable, Encrypted, Empty, TooLarge, Timeout or Unsupported.
    """
    path = os.fspath(path)
    status = _stat(path)
    if stat.S_ISDIR(status.st_mode):
        return Document(path, _FolderPages(path), rendering)
    if not stat.S_ISREG(status.st_mode):
        raise Unsupported(path, "this is not a regular file but a device, pipe or socket: save its content to a file")
    if status.st_size == 0:
        raise Empty(path, "the file has no content: it was probably cut off on its way here, fetch it again")
    return Document(path, _open_file(path, rendering), rendering)


def read_document(
    path: str | os.PathLike[str],
    rendering: Rendering = Rendering(),
    *,
    max_pages: int | None = 64,
    words: bool = False,
    ocr_pages: int = 0,
) -> PageStack:
    """Read a document's pages into arrays, at most `max_pages` of them, spread evenly. Raises like `open_document`.

    Args:
        words: read their words, too.
        ocr_pages: of the document's first so many pages, those without a text layer are read by OCR for their words.
    """
    with open_document(path, rendering) as document:
        stack = PageStack(document.path, [], spread(document.num_pages, max_pages), document.num_pages)
        found = []
        for index in stack.indices:
            stack.pages.append(np.array(document[index]))
            if words:
                found.append(document.read_words(index, ocr=index < ocr_pages))
        return stack._replace(words=found)


def spread(num_pages: int, max_pages: int | None) -> list[int]:
    """0-based places of at most `max_pages` pages spread evenly; the first and the last are in (the first if one)."""
    if max_pages is not None and max_pages < 1:
        raise ValueError(f"max_pages must be at least 1, not {max_pages}")
    if max_pages is None or num_pages <= max_pages:
        return list(range(num_pages))
    if max_pages == 1:
        return [0]
    return [(2 * i * (num_pages - 1) + max_pages - 1) // (2 * (max_pages - 1)) for i in range(max_pages)]


def find_documents(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The documents that these paths stand for, in order.

    - A file stands for itself, whatever its suffix; so does a path that does not exist: reading it says NotFound.
    - A folder whose own name ends like a document's (`x.pdf`) stands for itself; reading it says Unsupported.
    - A folder with page images (png, jpg, jpeg, webp, bmp, gif) and neither PDFs, TIFFs nor folders is one document.
    - Any other folder gives what lies in it, and so on downwards: PDFs, TIFFs, images (each a document of one page) and
      folders that are one document, in natural order (p2 before p10). Other files are passed over.
    - Whatever is hidden (its name begins with a dot) is passed over inside folders, and so are links to folders.
    - A folder that gives nothing stands for itself when it was named: reading it says Empty.
    """
    return [found for path in paths for found in _below(os.fspath(path)) or [os.fspath(path)]]


def _below(path: str) -> list[str]:
    if not os.path.isdir(path) or _suffix(path) in SUFFIXES:
        return [path]
    try:
        entries = _entries(path)
    except OSError:
        return [path]
    folders = [entry.path for entry in entries if os.path.isdir(entry)]
    files = [entry.path for entry in entries if _suffix(entry.name) in SUFFIXES and not os.path.isdir(entry)]
    if files and not folders and all(_suffix(file) in PAGE_SUFFIXES for file in files):
        return [path]
    found: list[str] = []
    for entry in entries:
        if os.path.isdir(entry):
            found += [] if entry.is_symlink() else _below(entry.path)
        elif _suffix(entry.name) in SUFFIXES:
            found.append(entry.path)
    return found


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """What is not hidden. Ask os.path what an entry is: its own methods raise for a link that leads in a circle."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: _natural(e.name))


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name


def _suffix(path: str) -> str:
    return os.path.splitext(path.rstrip("/"))[1].lower()


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise NotFound(path, "there is no such file or folder: check the path") from None
    except OSError as error:
        raise Unreadable(path, f"the system does not give access to it ({error.strerror})") from None


def _open_file(path: str, rendering: Rendering) -> Renderer:
    try:
        with open(path, "rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise Unreadable(path, f"the file cannot be opened ({error.strerror}): check its permissions") from None
    if b"%PDF-" in head:
        return _open_pdf(path, rendering)
    looks = _looks_like(head)
    if looks.endswith("image") and _suffix(path) != ".pdf":
        return ImagePages(path)
    if _suffix(path) not in SUFFIXES:
        raise Unsupported(path, f"this is {looks}; PDF, TIFF and page images are read: export it as PDF")
    todo = "give it the suffix of an image" if looks.endswith("image") else "export it as PDF or fetch it again"
    raise Unreadable(path, f"its content is not what its name says but {looks}: {todo}")


def _looks_like(head: bytes) -> str:
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "a WebP image"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page (often a login or an error page)"
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    known = (name for signature, name in _SIGNATURES if head.startswith(signature))
    return next(known, "unknown binary data" if b"\0" in head else "plain text or unknown data")


def _open_pdf(path: str, rendering: Rendering) -> Renderer:
    if rendering.renderer == "poppler":
        return PopplerPages(path)
    try:
        return PdfiumPages(path)
    except Unreadable as error:
        if shutil.which("pdftoppm") is None:
            raise Unreadable(path, f"{error.message}; or {INSTALL_POPPLER}") from None
        try:
            pages = PopplerPages(path)
        except (Unreadable, Empty):
            raise error from None
        logger.warning("%s: PDFium cannot open it, poppler draws it instead", path)
        return pages


class _FolderPages:
    """A folder of page images; each file is a page."""

    def __init__(self, path: str) -> None:
        self.path = path
        if _suffix(path) in SUFFIXES:
            raise Unsupported(path, "this is a folder with a file's name: name the files in it, or rename it")
        try:
            self._files = [e.path for e in _entries(path) if _suffix(e.name) in PAGE_SUFFIXES and os.path.isfile(e)]
        except OSError as error:
            raise Unreadable(path, f"the folder cannot be opened ({error.strerror}): check its permissions") from None
        self.num_pages = len(self._files)
        if not self._files:
            raise Empty(path, f"the folder itself holds no page images ({', '.join(PAGE_SUFFIXES)})")

    def render(self, index: int, rendering: Rendering) -> Image.Image:
        file = self._files[index]
        try:
            with open_document(file, rendering) as page:
                return page[0]
        except DocumentError as error:
            raise type(error)(self.path, f"{os.path.basename(file)}: {error.message}") from None

    def words(self, index: int) -> Words:
        return Words()

    def close(self) -> None: ...
