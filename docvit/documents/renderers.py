"""PDFium and poppler: the renderers of PDFs.

PDFium is not safe to use from several threads: every call into it holds `PDFIUM_LOCK`. Several documents at once take
several processes (`docvit.documents.workers`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import tempfile
import threading
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pdf2image
import pypdfium2
import pypdfium2.raw as pdfium
from pdf2image import exceptions as poppler_errors
from PIL import Image

from docvit.documents.errors import DocumentError, Empty, Encrypted, Timeout, Unreadable, Unsupported
from docvit.documents.rendering import WHOLE, Box, Rendering, check_page, cut_out, part_size
from docvit.documents.words import Words, pdfium_words, poppler_words

INSTALL_POPPLER = (
    "install poppler (apt install poppler-utils, brew install poppler), which reads some that PDFium cannot"
)

PDFIUM_LOCK = threading.RLock()

# a process is never forked in the middle of a call, which would leave PDFium half way through it in the child
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=PDFIUM_LOCK.acquire, after_in_parent=PDFIUM_LOCK.release, after_in_child=PDFIUM_LOCK.release
    )

MAX_SIDE = 500_000.0  # points; beyond the 14,400 of PDF 1.7, since long web pages are printed as one page

POPPLER_TIMEOUT = 60  # seconds per call

WORDS_TIMEOUT = 10  # seconds; words that take longer are not worth the document

_DAMAGED = "the PDF is damaged or cut off: fetch it again"

_PASSWORD = "a password is needed: give it where there is --password (Python: password=), or save the file without one"

_WRONG_PASSWORD = "the password given does not open it: check it"

_XFA = "a dynamic XFA form, whose only PDF page is a notice: open it in Adobe Acrobat and print it as PDF"

_OPEN: weakref.WeakSet[PdfiumPages] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A document left open is no fault of the user, but pypdfium2 would complain of it on leaving."""
    for pages in list(_OPEN):
        pages.close()


class PdfiumPages:
    """The pages of a PDF drawn by PDFium (needs no system package, the fastest)."""

    def __init__(self, path: str, content: str | bytes, password: str | None = None) -> None:
        self.path, self.note = path, ""
        self._page: tuple[int, pypdfium2.PdfPage] | None = None
        self._content = content  # PDFium reads from these bytes as long as the document is open
        with PDFIUM_LOCK:
            self._open(password)
            try:
                self._check_pages()
                self.note = self._what_it_is()
                self._form = self._open_form()
            except DocumentError:
                self._pdf.close()
                raise
        _OPEN.add(self)

    def _open(self, password: str | None) -> None:
        secret = None if password is None else password.encode()
        if isinstance(self._content, str):
            handle = pdfium.FPDF_LoadDocument(os.fsencode(os.path.abspath(self._content)), secret)
        else:
            handle = pdfium.FPDF_LoadMemDocument64(self._content, len(self._content), secret)
        if not handle:
            code = pdfium.FPDF_GetLastError()
            if code in (pdfium.FPDF_ERR_PASSWORD, pdfium.FPDF_ERR_SECURITY):
                raise Encrypted(self.path, _PASSWORD if password is None else _WRONG_PASSWORD)
            raise Unreadable(self.path, _DAMAGED)
        if pdfium.FPDF_GetPageCount(handle) < 1:
            pdfium.FPDF_CloseDocument(handle)
            raise Empty(self.path, "the PDF has no pages")
        self._pdf = pypdfium2.PdfDocument(handle)
        self.num_pages = len(self._pdf)

    def _open_form(self) -> Any:
        """The form layer, what was filled in, ticked and signed, which PDFium draws apart from the page; None if none.

        Its fields are not highlighted, as on a screen, unless PDFium is asked for it.
        """
        if pdfium.FPDF_GetFormType(self._pdf) == pdfium.FORMTYPE_NONE:
            return None
        self._form_config = pdfium.FPDF_FORMFILLINFO(version=2)  # to be kept alive
        return pdfium.FPDFDOC_InitFormFillEnvironment(self._pdf, ctypes.byref(self._form_config)) or None

    def _check_pages(self) -> None:
        """/Count may promise any number of pages: where the last is missing, half of a sample must be there."""
        sample = range(0, self.num_pages, max(1, self.num_pages // 16))
        if not self._has(self.num_pages - 1) and sum(map(self._has, sample)) <= len(sample) / 2:
            raise _missing_page(self.path, self.num_pages - 1, self.num_pages)

    def _has(self, index: int) -> bool:
        try:
            self.size(index)
        except Unreadable:
            return False
        return True

    def _what_it_is(self) -> str:
        """What a reader should know of the file; refuses files whose pages only stand for something else."""
        form = pdfium.FPDF_GetFormType(self._pdf)
        if form == pdfium.FORMTYPE_XFA_FULL:
            raise Unsupported(self.path, f"this is {_XFA}")
        if form == pdfium.FORMTYPE_XFA_FOREGROUND and self.num_pages == 1:
            with contextlib.closing(self._pdf[0]) as page:
                if not has_fields(page):
                    return f"this may be {_XFA}"
        attached = pdfium.FPDFDoc_GetAttachmentCount(self._pdf)
        if attached > 0 and self._is_portfolio():
            if self.num_pages == 1:
                cover = "a PDF portfolio, whose only page is a cover: save"
                raise Unsupported(self.path, f"this is {cover} the {attached} files attached to it and read those")
            return f"this is a PDF portfolio: the {attached} files attached to it were not read"
        return ""

    def _is_portfolio(self) -> bool:
        """Whether the catalog has a /Collection; PDFium does not say. It may lie in a compressed object stream."""
        content = Path(self._content).read_bytes() if isinstance(self._content, str) else self._content
        packed = re.finditer(rb"/ObjStm.{0,400}?stream\r?\n", content, re.DOTALL)
        return b"/Collection" in content or any(b"/Collection" in _inflated(content, m.end()) for m in packed)

    def size(self, index: int) -> tuple[float, float]:
        """Sides of a page in points: of its crop box, turned as it is shown."""
        with PDFIUM_LOCK:
            try:
                return self._pdf.get_page_size(index)
            except pypdfium2.PdfiumError:
                raise _missing_page(self.path, index, self.num_pages) from None

    def render(self, index: int, rendering: Rendering, box: Box = WHOLE) -> Image.Image:
        size = self.size(index)
        check_page(self.path, index, *size, limit=MAX_SIDE)
        with PDFIUM_LOCK:
            image = self._draw(self._load(index), rendering.fit(*part_size(*size, box)), rendering, box)
        return image.reduce(rendering.supersample).convert("RGB").convert(rendering.mode)

    def words(self, index: int) -> Words:
        with PDFIUM_LOCK:
            return pdfium_words(self._load(index))

    def _load(self, index: int) -> pypdfium2.PdfPage:
        """A page, which stays open until another is wanted: to be drawn and read, it is parsed once."""
        if self._page is None or self._page[0] != index:
            self._unload()
            try:
                page = self._pdf[index]
                if self._form is None and _flatten_fields(page):
                    page.close()
                    page = self._pdf[index]
            except pypdfium2.PdfiumError:
                raise _missing_page(self.path, index, self.num_pages) from None
            self._page = index, page
            if self._form is not None:
                pdfium.FORM_OnAfterLoadPage(page, self._form)
        return self._page[1]

    def _unload(self) -> None:
        if self._page is not None:
            if self._form is not None:
                pdfium.FORM_OnBeforeClosePage(self._page[1], self._form)
            self._page[1].close()
            self._page = None

    def _draw(self, page: pypdfium2.PdfPage, size: tuple[int, int], rendering: Rendering, box: Box) -> Image.Image:
        """Gray pages are drawn in colour too: on a gray bitmap PDFium places letters less finely and is no faster."""
        width, height = (side * rendering.supersample for side in size)
        pixels = np.full((height, width, 4), 255, np.uint8)
        memory = pixels.ctypes.data, pixels.strides[0]
        bitmap = pdfium.FPDFBitmap_CreateEx(width, height, pdfium.FPDFBitmap_BGRx, *memory)
        whole = round(width / (box[2] - box[0])), round(height / (box[3] - box[1]))
        area = (-round(box[0] * whole[0]), -round(box[1] * whole[1]), *whole, 0)
        flags = pdfium.FPDF_ANNOT | pdfium.FPDF_REVERSE_BYTE_ORDER
        try:
            pdfium.FPDF_RenderPageBitmap(bitmap, page, *area, flags)
            if self._form is not None:
                pdfium.FPDF_FFLDraw(self._form, bitmap, page, *area, flags)
        finally:
            pdfium.FPDFBitmap_Destroy(bitmap)
        return Image.frombuffer("RGBX", (width, height), pixels, "raw", "RGBX", 0, 1)  # shares the pixels

    def close(self) -> None:
        with PDFIUM_LOCK:
            self._unload()
            if self._form is not None:
                pdfium.FPDFDOC_ExitFormFillEnvironment(self._form)
                self._form = None
            self._pdf.close()

    def __del__(self) -> None:
        # without a lock the interpreter is ending, and it is closed; pypdfium2 itself would close it without the lock
        if hasattr(self, "_form") and PDFIUM_LOCK:
            self.close()


def _flatten_fields(page: pypdfium2.PdfPage) -> bool:
    """Makes fields part of their page, if it has any: without a form, from which it was taken, none would be drawn."""
    if not has_fields(page):
        return False
    # PDFium gives a page without boxes of its own, which has those of its parent, those of a letter
    box = pdfium.FS_RECTF()
    pdfium.FPDF_GetPageBoundingBox(page, box)
    for set_box in (pdfium.FPDFPage_SetMediaBox, pdfium.FPDFPage_SetCropBox):
        set_box(page, box.left, box.bottom, box.right, box.top)
    return bool(pdfium.FPDFPage_Flatten(page, pdfium.FLAT_NORMALDISPLAY) == pdfium.FLATTEN_SUCCESS)


def has_fields(page: pypdfium2.PdfPage) -> bool:
    """Whether form fields lie on a page."""
    for index in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, index)
        kind = pdfium.FPDFAnnot_GetSubtype(annotation)
        pdfium.FPDFPage_CloseAnnot(annotation)
        if kind == pdfium.FPDF_ANNOT_WIDGET:
            return True
    return False


def _inflated(content: bytes, start: int) -> bytes:
    try:
        return zlib.decompressobj().decompress(content[start : start + (1 << 20)], 1 << 22)
    except zlib.error:
        return b""


class PopplerPages:
    """The pages of a PDF drawn by poppler's programs through pdf2image, one process per page."""

    def __init__(self, path: str, content: str | bytes, password: str | None = None) -> None:
        self.path, self.note = path, ""
        self._password = password
        self._sizes: dict[int, tuple[float, float]] = {}  # each costs a process
        self._folder = None
        if isinstance(content, bytes):
            self._folder = tempfile.TemporaryDirectory(prefix="docvit-")
            self._file = os.path.join(self._folder.name, "document.pdf")
            Path(self._file).write_bytes(content)
        else:
            self._file = os.path.abspath(content)  # or a leading dash would be an option
        info = self._info()
        self.num_pages = int(info["Pages"])
        self.size(self.num_pages - 1)  # /Count may promise any number of pages
        if info.get("Form") == "XFA" and self.num_pages == 1:
            self.note = f"this may be {_XFA}"

    def _run(self, function: Callable[..., Any], **options: Any) -> Any:
        try:
            return function(self._file, timeout=POPPLER_TIMEOUT, userpw=self._password, **options)
        except poppler_errors.PDFInfoNotInstalledError:
            raise Unreadable(self.path, f"the renderer poppler is not installed: {INSTALL_POPPLER}") from None
        except poppler_errors.PDFPopplerTimeoutError:
            raise Timeout(self.path, f"poppler took longer than {POPPLER_TIMEOUT} seconds: simplify the page") from None
        except (poppler_errors.PDFPageCountError, poppler_errors.PDFSyntaxError) as error:
            if "password" in str(error).lower():
                raise Encrypted(self.path, _PASSWORD if self._password is None else _WRONG_PASSWORD) from None
            if "Invalid page count 0" in str(error):
                raise Empty(self.path, "the PDF has no pages") from None
            raise Unreadable(self.path, _DAMAGED) from None

    def _info(self, page: int | None = None) -> dict[str, str]:
        return self._run(pdf2image.pdfinfo_from_path, first_page=page, last_page=page)

    def size(self, index: int) -> tuple[float, float]:
        """Sides of a page in points, as with PDFium. Where there is no page, poppler says 0 x 0."""
        if index in self._sizes:
            return self._sizes[index]
        info = "\n".join(f"{key}: {value}" for key, value in self._info(index + 1).items())
        size = re.search(r"^Page +\d+ size: *(\S+) x (\S+)", info, re.MULTILINE)
        rotation = re.search(r"^Page +\d+ rot: *(\d+)", info, re.MULTILINE)
        width, height = map(float, size.groups()) if size else (0.0, 0.0)
        if width == height == 0:
            raise _missing_page(self.path, index, self.num_pages)
        turned = rotation is not None and int(rotation[1]) % 180 != 0
        self._sizes[index] = (height, width) if turned else (width, height)
        return self._sizes[index]

    def render(self, index: int, rendering: Rendering, box: Box = WHOLE) -> Image.Image:
        size = self.size(index)
        check_page(self.path, index, *size, limit=MAX_SIDE)
        fitted = rendering.fit(*part_size(*size, box))
        whole = round(fitted[0] / (box[2] - box[0])), round(fitted[1] / (box[3] - box[1]))
        images = self._run(
            pdf2image.convert_from_path,
            first_page=index + 1,
            last_page=index + 1,
            size=max(whole) * rendering.supersample,  # the longer side: which is which, releases see differently
            use_cropbox=True,
        )
        if not images or max(images[0].size) < max(whole):
            raise _missing_page(self.path, index, self.num_pages)
        return cut_out(images[0], box).resize(fitted, Image.Resampling.BOX).convert(rendering.mode)

    def words(self, index: int) -> Words:
        return poppler_words(self._file, index, self.size(index), timeout=WORDS_TIMEOUT)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _missing_page(path: str, index: int, num_pages: int) -> Unreadable:
    return Unreadable(path, f"page {index + 1:,} of {num_pages:,} is damaged or not there: fetch the file again")
