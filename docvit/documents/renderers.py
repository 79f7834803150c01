"""PDFium and poppler: the renderers of PDFs.

PDFium is not safe to use from several threads: several documents at once take several processes
(`docvit.documents.workers`).
"""

from __future__ import annotations

import atexit
import os
import re
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pdf2image
import pypdfium2
import pypdfium2.raw as pdfium
from pdf2image import exceptions as poppler_errors
from PIL import Image

from docvit.documents.errors import DocumentError, Empty, Encrypted, Timeout, Unreadable
from docvit.documents.rendering import Rendering, check_page
from docvit.documents.words import Words, pdfium_words, poppler_words

INSTALL_POPPLER = (
    "install poppler (apt install poppler-utils, brew install poppler), which reads some that PDFium cannot"
)

MAX_SIDE = 14_400.0  # points; ISO 32000-1, annex C.2

POPPLER_TIMEOUT = 60  # seconds a call

WORDS_TIMEOUT = 10  # seconds; words that take longer are not worth the document

_DAMAGED = "the PDF is damaged or cut off: fetch it again"

_PASSWORD = "a password is needed to open it: save it without one"

_Result = TypeVar("_Result")

_OPEN: weakref.WeakSet[PdfiumPages] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A document left open is no fault of the user, but pypdfium2 would complain of it on leaving."""
    for pages in list(_OPEN):
        pages.close()


class PdfiumPages:
    """The pages of a PDF drawn by PDFium (needs no system package, the fastest)."""

    def __init__(self, path: str) -> None:
        self.path = path
        handle = pdfium.FPDF_LoadDocument(os.fsencode(os.path.abspath(path)), None)
        if not handle:
            raise self._refused(pdfium.FPDF_GetLastError())
        if pdfium.FPDF_GetPageCount(handle) < 1:
            pdfium.FPDF_CloseDocument(handle)
            raise Empty(path, "the PDF has no pages")
        self._pdf = pypdfium2.PdfDocument(handle)
        self._page: tuple[int, pypdfium2.PdfPage] | None = None
        _OPEN.add(self)
        self.num_pages = len(self._pdf)
        try:  # /Count may promise any number of pages: the last of them must be there
            self._size(self.num_pages - 1)
        except Unreadable:
            self.close()
            raise

    def _refused(self, code: int) -> DocumentError:
        if code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
            return Encrypted(self.path, _PASSWORD)
        return Unreadable(self.path, _DAMAGED)

    def _size(self, index: int) -> tuple[float, float]:
        """Sides of a page in points: of its crop box, turned as it is shown."""
        try:
            width, height = self._pdf.get_page_size(index)
        except pypdfium2.PdfiumError:
            raise _missing_page(self.path, index, self.num_pages) from None
        return width, height

    def render(self, index: int, rendering: Rendering) -> Image.Image:
        size = self._size(index)
        check_page(self.path, index, *size, limit=MAX_SIDE)
        return _draw(self._load(index), rendering.fit(*size), rendering)

    def words(self, index: int) -> Words:
        return pdfium_words(self._load(index))

    def _load(self, index: int) -> pypdfium2.PdfPage:
        """A page, which stays open until another is wanted: to be drawn and read, it is parsed once."""
        if self._page is None or self._page[0] != index:
            self._unload()
            try:
                self._page = index, self._pdf[index]
            except pypdfium2.PdfiumError:
                raise _missing_page(self.path, index, self.num_pages) from None
        return self._page[1]

    def _unload(self) -> None:
        if self._page is not None:
            self._page[1].close()
            self._page = None

    def close(self) -> None:
        self._unload()
        self._pdf.close()


def _draw(page: pypdfium2.PdfPage, size: tuple[int, int], rendering: Rendering) -> Image.Image:
    """Gray pages are drawn in colour too: on a gray bitmap PDFium places letters less finely and is no faster.

    Form fields are drawn as they print, by their annotations; a form environment would add hints meant for the screen.
    """
    width, height = (side * rendering.supersample for side in size)
    pixels = np.full((height, width, 4), 255, np.uint8)
    bitmap = pdfium.FPDFBitmap_CreateEx(width, height, pdfium.FPDFBitmap_BGRx, pixels.ctypes.data, pixels.strides[0])
    flags = pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER
    try:
        pdfium.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, flags)
    finally:
        pdfium.FPDFBitmap_Destroy(bitmap)
    image = Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)  # shares the pixels
    return image.reduce(rendering.supersample).convert("RGB").convert(rendering.mode)


class PopplerPages:
    """The pages of a PDF drawn by poppler's programs through pdf2image, one process a page."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.path.abspath(path)  # or a leading dash would be an option
        self.num_pages = int(self._info()["Pages"])
        self._size(self.num_pages - 1)  # as with PDFium, the last must be there

    def _run(self, function: Callable[..., _Result], **options: Any) -> _Result:
        try:
            return function(self._file, timeout=POPPLER_TIMEOUT, **options)
        except poppler_errors.PDFInfoNotInstalledError:
            raise Unreadable(self.path, f"the renderer poppler is not installed: {INSTALL_POPPLER}") from None
        except poppler_errors.PDFPopplerTimeoutError:
            raise Timeout(self.path, f"poppler took longer than {POPPLER_TIMEOUT} seconds: simplify the page") from None
        except (poppler_errors.PDFPageCountError, poppler_errors.PDFSyntaxError) as error:
            if "password" in str(error).lower():
                raise Encrypted(self.path, _PASSWORD) from None
            if "Invalid page count 0" in str(error):
                raise Empty(self.path, "the PDF has no pages") from None
            raise Unreadable(self.path, _DAMAGED) from None

    def _info(self, page: int | None = None) -> dict[str, str]:
        return self._run(pdf2image.pdfinfo_from_path, first_page=page, last_page=page)

    def _size(self, index: int) -> tuple[float, float]:
        """Sides of a page in points, as with PDFium. Where there is no page, poppler says 0 x 0."""
        info = "\n".join(f"{key}: {value}" for key, value in self._info(index + 1).items())
        size = re.search(r"^Page +\d+ size: *(\S+) x (\S+)", info, re.MULTILINE)
        rotation = re.search(r"^Page +\d+ rot: *(\d+)", info, re.MULTILINE)
        width, height = map(float, size.groups()) if size else (0.0, 0.0)
        if width == height == 0:
            raise _missing_page(self.path, index, self.num_pages)
        return (height, width) if rotation and int(rotation[1]) % 180 else (width, height)

    def render(self, index: int, rendering: Rendering) -> Image.Image:
        size = self._size(index)
        check_page(self.path, index, *size, limit=MAX_SIDE)
        fitted = rendering.fit(*size)
        images = self._run(
            pdf2image.convert_from_path,
            first_page=index + 1,
            last_page=index + 1,
            size=max(fitted) * rendering.supersample,  # the longer side: which is which, releases see differently
            use_cropbox=True,
        )
        if not images or max(images[0].size) < max(fitted):
            raise _missing_page(self.path, index, self.num_pages)
        return images[0].resize(fitted, Image.Resampling.BOX).convert(rendering.mode)

    def words(self, index: int) -> Words:
        return poppler_words(self._file, index, self._size(index), timeout=WORDS_TIMEOUT)

    def close(self) -> None: ...


def _missing_page(path: str, index: int, num_pages: int) -> Unreadable:
    return Unreadable(path, f"page {index + 1:,} of {num_pages:,} is damaged or not there: fetch the file again")
