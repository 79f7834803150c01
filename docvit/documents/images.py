"""Pillow: the renderer of images and TIFFs."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from docvit.documents.errors import DocumentError, TooLarge, Unreadable
from docvit.documents.rendering import Rendering, check_page
from docvit.documents.words import Words

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # not EPS and the like, which start programs


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

    def words(self, index: int) -> Words:
        return Words()

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


def _image_error(path: str, error: Exception) -> DocumentError:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError)):
        return TooLarge(path, "the image has too many pixels: reduce it, 300 dpi is plenty")
    if isinstance(error, UnidentifiedImageError):
        return Unreadable(path, "the image is damaged or not what its name says: save it again as PNG")
    return Unreadable(path, f"the image is damaged or cut off ({error}): fetch it again")
