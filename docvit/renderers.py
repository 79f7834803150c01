"""Who draws pages: PDFium or poppler for PDFs, Pillow for images, behind one small protocol; and what may go wrong.

PDFium is not safe to use from several threads: several documents at once take several processes (`docvit.pool`).
"""

from __future__ import annotations

import atexit
import math
import os
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import pdf2image
import pypdfium2
import pypdfium2.raw as pdfium
from pdf2image import exceptions as poppler_errors
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # not EPS and the like, which start programs
INSTALL_POPPLER = (
    "install poppler (apt install poppler-utils, brew install poppler), which reads some that PDFium cannot"
)
MAX_SIDE = 14_400.0  # points; ISO 32000-1, annex C.2
MAX_ASPECT = 50.0
POPPLER_TIMEOUT = 60  # seconds a call

_DAMAGED = "the PDF is damaged or cut off: fetch it again"
_PASSWORD = "a password is needed to open it: save it without one"
_Result = TypeVar("_Result")


class DocumentError(Exception):
    """A document cannot be read; `path` says which, `message` why and what to do. Crosses processes unharmed."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"

    @property
    def kind(self) -> str:
        return type(self).__name__

    def as_dict(self) -> dict[str, str]:
        return {"type": self.kind, "message": self.message}


class NotFound(DocumentError):
    """There is no such file."""


class Unreadable(DocumentError):
    """Damaged, not what its name says, or closed to us by its permissions."""


class Encrypted(DocumentError):
    """A password is needed."""


class Empty(DocumentError):
    """Zero bytes, zero pages, or a folder without pages."""


class TooLarge(DocumentError):
    """Page sides, pixels or memory beyond what is sound."""


class Timeout(DocumentError):
    """Reading took longer than allowed."""


class Unsupported(DocumentError):
    """A kind of file that is not read here."""


@dataclass(frozen=True)
class Rendering:
    """How pages become pixels; stands in a model's config.json and in cache keys.

    A page keeps its aspect ratio: its longer side becomes `size` pixels and both sides are rounded to multiples of
    `multiple` (the patch size), one at least. It is drawn `supersample` times larger and reduced by a box filter, since
    renderers draw every hairline at least one pixel wide, which at a small size turns rules and staves into bars.
    """

    renderer: str = "pdfium"
    size: int = 224
    multiple: int = 16
    supersample: int = 2
    mode: str = "RGB"

    def __post_init__(self) -> None:
        if self.renderer not in ("pdfium", "poppler"):
            raise ValueError(f"renderer must be 'pdfium' or 'poppler', not {self.renderer!r}")
        if self.mode not in ("RGB", "L"):
            raise ValueError(f"mode must be 'RGB' or 'L', not {self.mode!r}")
        if min(self.size, self.multiple, self.supersample) < 1:
            raise ValueError("size, multiple and supersample must be at least 1")

    def fit(self, width: float, height: float) -> tuple[int, int]:
        """Width and height in pixels of a page of these proportions."""
        unit = self.size / max(width, height) / self.multiple
        return max(1, round(width * unit)) * self.multiple, max(1, round(height * unit)) * self.multiple


class Renderer(Protocol):
    """An open file that can draw its pages."""

    num_pages: int

    def render(self, index: int, rendering: Rendering) -> Image.Image: ...

    def close(self) -> None: ...


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
        try:
            page = self._pdf[index]
        except pypdfium2.PdfiumError:
            raise _missing_page(self.path, index, self.num_pages) from None
        try:
            return _draw(page, rendering.fit(*size), rendering)
        finally:
            page.close()

    def close(self) -> None:
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

    def close(self) -> None: ...


class ImagePages:
    """An image; of a TIFF every frame is a page, of an animation only the first."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._image = Image.open(path, formats=IMAGE_FORMATS)
            self.num_pages = int(getattr(self._image, "n_frames", 1)) if self._image.format == "TIFF" else 1
        except Exception as error:  # Pillow's plugins let anything through
            raise _image_error(path, error) from None

    def render(self, index: int, rendering: Rendering) -> Image.Image:
        try:
            self._image.seek(index)
            check_page(self.path, index, *self._image.size)
            # a JPEG is decoded no larger than needed
            self._image.draft(rendering.mode, (rendering.size * rendering.supersample,) * 2)
            return fit_image(self._image, rendering)
        except DocumentError:
            raise
        except Exception as error:
            raise _image_error(self.path, error) from None

    def close(self) -> None:
        self._image.close()


def fit_image(image: Image.Image, rendering: Rendering) -> Image.Image:
    """An image as a page of this rendering: upright (EXIF), transparency on white paper, resized by area means."""
    image = _flatten(ImageOps.exif_transpose(image))
    size = rendering.fit(*image.size)
    shrinks = size[0] < image.width or size[1] < image.height
    small = image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return small.convert(rendering.mode)


def _flatten(image: Image.Image) -> Image.Image:
    """8 bits a channel, gray or RGB, nothing transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(image, np.float32))
        depths = (65535,) if image.mode.startswith("I;16") else (1, 255, 65535)
        white = next((depth for depth in depths if values.max() <= depth), float(values.max()))
        return Image.fromarray((values * (255 / white)).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.getbands()[-1] in ("A", "a"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def check_page(path: str, index: int, width: float, height: float, *, limit: float = math.inf) -> None:
    """Raise `TooLarge` for a page whose sides are not sound; `limit` is the longest side allowed."""
    sides = f"page {index + 1} measures {width:g} x {height:g}"
    if not (0 < width <= limit and 0 < height <= limit):
        raise TooLarge(path, f"{sides} points, outside what PDF allows (up to {limit:,.0f}): correct the page box")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TooLarge(path, f"{sides}, a strip beyond 1:{MAX_ASPECT:g}: cut it into pages")


def _missing_page(path: str, index: int, num_pages: int) -> Unreadable:
    return Unreadable(path, f"page {index + 1:,} of {num_pages:,} is damaged or not there: fetch the file again")


def _image_error(path: str, error: Exception) -> DocumentError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
        return TooLarge(path, "the image has too many pixels: reduce it, 300 dpi is plenty")
    if isinstance(error, UnidentifiedImageError):
        return Unreadable(path, "the image is damaged or not what its name says: save it again as PNG")
    return Unreadable(path, f"the image is damaged or cut off ({error}): fetch it again")
