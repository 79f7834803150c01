"""Pillow: the renderer of images and TIFFs."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from docvit.documents.errors import DocumentError, TooLarge, Unreadable
from docvit.documents.rendering import WHOLE, Box, Rendering, check_page, cut_out
from docvit.documents.words import Words

# not EPS and the like, which start programs
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "JPEG2000", "AVIF", "PPM")

_LOCK = threading.RLock()  # Pillow's limits are global

_ORIENTATION, _PHOTOMETRIC, _BITS, _SUBFILE, _OLD_SUBFILE, _SAMPLE_FORMAT = 274, 262, 258, 254, 255, 339

_WHITE_OF_32 = 2.0**32 - 1

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_DRAFTED = ("JPEG", "MPO")  # decoded no larger than needed

_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # per pixel in memory; all other modes take 4


class ImagePages:
    """An image; of a TIFF every frame that is a page, of an animation only the first."""

    def __init__(self, path: str, content: str | bytes | Image.Image) -> None:
        self.path, self.note = path, ""
        self._content = content
        self._decoded: Any = None  # how large, if at all
        self._image = self._open()
        with _document_errors(path):
            self._frames, self.note = ([0], "") if self._image is content else page_frames(self._image)
        self.num_pages = len(self._frames)

    def _open(self) -> Image.Image:
        if isinstance(self._content, Image.Image):
            return self._content
        file = self._content if isinstance(self._content, str) else io.BytesIO(self._content)
        with _document_errors(self.path), no_pixel_limit() as limit:
            image = Image.open(file, formats=IMAGE_FORMATS)
        self._check_cost(image, limit)
        return image

    def _check_cost(self, image: Image.Image, limit: int | None) -> None:
        """Refuse what takes much memory: as many bytes as Pillow's own limit allows in colour."""
        cost = image.width * image.height * _BYTES.get(image.mode, 4)
        if limit is not None and cost > 8 * limit:
            megabytes = f"{cost / 1e6:,.0f} MB once decoded, {8 * limit / 1e6:,.0f} MB are allowed"
            raise TooLarge(self.path, f"the image has too many pixels ({megabytes}): reduce it, 300 dpi is plenty")

    def _at(self, index: int, size: Any) -> Image.Image:
        """The image at a frame, nothing decoded yet, or to this size: for the many parts of a long page, once."""
        if isinstance(self._content, Image.Image):
            return self._content
        if self._decoded not in (None, size):
            self._image.close()
            self._image = self._open()
        self._decoded = size if len(self._frames) == 1 else None
        with no_pixel_limit() as limit:
            self._image.seek(self._frames[index])
        self._check_cost(self._image, limit)
        return self._image

    def size(self, index: int) -> tuple[float, float]:
        if len(self._frames) > 1:
            with _document_errors(self.path), no_pixel_limit():
                self._image.seek(self._frames[index])
        width, height = self._image.size
        return (height, width) if _orientation(self._image) > 4 else (width, height)

    def render(self, index: int, rendering: Rendering, box: Box = WHOLE) -> Image.Image:
        with _document_errors(self.path):
            side = rendering.size * rendering.supersample
            least = rendering.mode, (round(side / (box[2] - box[0])), round(side / (box[3] - box[1])))
            image = self._at(index, least if self._image.format in _DRAFTED else "whole")
            check_page(self.path, index, *image.size)
            if image is not self._content:
                image.draft(*least)
            try:
                _load(image)
            except (OSError, SyntaxError) as error:
                return self._render_truncated(index, rendering, box, error)
            return fit_image(image, rendering, box)

    def _render_truncated(self, index: int, rendering: Rendering, box: Box, error: Exception) -> Image.Image:
        """The part of the image that is there, on white paper."""
        if isinstance(self._content, Image.Image):
            raise error
        self._decoded = "in part"
        image = self._at(index, "what is there")
        with _LOCK:
            before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
            try:
                _load(image)
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = before
        pixels = np.array(_flatten(_upright(image), _levels(image)))
        there = (pixels != pixels[-1, -1]).reshape(len(pixels), -1).any(1)
        if not there.any():
            raise error  # one colour: nothing was decoded
        pixels[np.flatnonzero(there)[-1] + 1 :] = 255
        self.note = f"the image is cut off ({error}): what is there was read"
        return fit_image(Image.fromarray(pixels), rendering, box)

    def words(self, index: int) -> Words:
        return Words()

    def close(self) -> None:
        if not isinstance(self._content, Image.Image):
            self._image.close()


@contextmanager
def _document_errors(path: str) -> Iterator[None]:
    """What Pillow raises as errors of the document; its plugins let anything through."""
    try:
        yield
    except DocumentError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
        raise TooLarge(path, "the image has too many pixels: reduce it, 300 dpi is plenty") from None
    except UnidentifiedImageError:
        raise Unreadable(path, "the image is damaged or not what its name says: save it again as PNG") from None
    except Exception as error:
        raise Unreadable(path, f"the image is damaged or cut off ({error}): fetch it again") from None


@contextmanager
def no_pixel_limit() -> Iterator[int | None]:
    """Pillow's limit counts pixels, of whatever depth; gives it."""
    with _LOCK:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield limit
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _load(image: Image.Image) -> None:
    with no_pixel_limit() as limit:
        large = limit is not None and image.width * image.height > limit
        if large:
            image.load()
    if not large:  # nobody waits for the lock
        image.load()


def page_frames(image: Image.Image) -> tuple[list[int], str]:
    """The frames that are pages: of a TIFF all but reduced copies and masks, up to one that cannot be found; a note."""
    if image.format != "TIFF":
        return [0], ""
    frames, count, note = [], 0, ""
    with no_pixel_limit():
        while True:
            try:
                image.seek(count)
            except Exception as error:
                if count == 0:
                    raise
                if not isinstance(error, EOFError):
                    note = f"the TIFF is cut off after page {count}: what is there was read"
                break
            tags = _tags(image)
            if not int(tags.get(_SUBFILE, 0)) & 0b101 and tags.get(_OLD_SUBFILE) != 2:
                frames.append(count)
            count += 1
        image.seek(0)
    return frames or list(range(count)), note


def _tags(image: Image.Image) -> Mapping[int, Any]:
    return getattr(image, "tag_v2", {})


def fit_image(image: Image.Image, rendering: Rendering, box: Box = WHOLE) -> Image.Image:
    """An image, or a part, as a page of this rendering: upright (EXIF), on white, resized by area means."""
    levels = _levels(image)
    image = _flatten(cut_out(_upright(image), box), levels)
    size = rendering.fit(*image.size)
    shrinks = size[0] < image.width or size[1] < image.height
    small = image.resize(size, Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC)
    return small.convert(rendering.mode)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is absent or damaged, and in a TIFF, which Pillow turns as it loads."""
    try:
        value = 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)
        return value if value in _TURNS else 1
    except Exception:  # EXIF is written by everything, and read by parsers that let anything through
        return 1


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _levels(image: Image.Image) -> tuple[float, float] | None:
    """The values of black and white of a TIFF deeper than 8 bits; None where the pixels must tell."""
    tags = _tags(image)
    inverted = tags.get(_PHOTOMETRIC) == 0
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS, (16,))
        white = 2.0 ** min(int(bits[0] if isinstance(bits, tuple) else bits), 16) - 1
    elif image.mode in ("I", "F") and inverted:
        white = _white(np.asarray(image, np.float32), image.mode)
    elif image.mode == "I" and tags and tags.get(_SAMPLE_FORMAT, (1,)) == (1,) and np.asarray(image).min(initial=0) < 0:
        white = _WHITE_OF_32  # unsigned, which Pillow takes for signed
    else:
        return None
    return (white, 0.0) if inverted else (0.0, white)


def _white(values: NDArray[Any], mode: str) -> float:
    """The least usual full scale that holds all values."""
    largest = float(np.nanmax(values, initial=0.0))
    scales = (255.0, 65535.0) if mode == "I" else (1.0, 255.0, 65535.0)
    return next((scale for scale in scales if largest <= scale), largest)


def _flatten(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    """8 bits per channel, gray or RGB, nothing transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.nan_to_num(np.asarray(image))
        black, white = levels or (0.0, _white(values, image.mode))
        if white == _WHITE_OF_32:
            values = values.view(np.uint32)
        gray = np.empty(values.shape, np.uint8)
        for top in range(0, len(values), 1024):  # in bands, or the intermediate values would take 4 times the image
            band = values[top : top + 1024].astype(np.float32)
            gray[top : top + 1024] = ((band - black) * (255 / ((white - black) or 1))).clip(0, 255)
        return Image.fromarray(gray)
    if image.mode == "LAB":
        to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
        converted = ImageCms.applyTransform(image, to_rgb)
        assert converted is not None  # it is None in place only
        return converted
    if "transparency" in image.info or image.getbands()[-1] in ("A", "a"):
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    wanted = "L" if image.mode in ("1", "L") else "RGB"
    return image if image.mode == wanted else image.convert(wanted)
