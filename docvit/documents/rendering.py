"""How pages become pixels, and the protocol of everything that draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from docvit.documents.errors import TooLarge

if TYPE_CHECKING:  # settings of models and help texts need neither
    from PIL import Image

    from docvit.documents.words import Words

MAX_ASPECT = 1000.0

CUT_ABOVE = 4.0  # a page longer than so many times its width is read in parts

PART_ASPECT = 1.5

MAX_PARTS = 64

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) of a part of a page, or of a word, in 0..1 of the page."""

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class Rendering:
    """How pages become pixels; stands in a model's config.json and in cache keys.

    A page keeps its aspect ratio: its longer side becomes `size` pixels and both sides are rounded to multiples of
    `multiple` (the patch size). Where the shorter side would be less than one patch, it becomes one patch and the
    longer side follows. A page is drawn `supersample` times larger and reduced by a box filter, since renderers draw
    every hairline at least one pixel wide, which at a small size turns rules and staves into bars.
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
        longest = max(self.size, self.multiple * max(width, height) / min(width, height))
        unit = longest / max(width, height) / self.multiple
        return max(1, round(width * unit)) * self.multiple, max(1, round(height * unit)) * self.multiple


class Renderer(Protocol):
    """An open file that can draw its pages and say their words.

    Attributes:
        num_pages: pages of the file.
        note: what a reader should know of the file; empty if nothing. May grow while pages are drawn.
    """

    num_pages: int
    note: str

    def size(self, index: int) -> tuple[float, float]:
        """Width and height of a page as it is shown, in any unit."""

    def render(self, index: int, rendering: Rendering, box: Box = WHOLE) -> Image.Image:
        """A page, or a part of it, in RGB or L."""

    def words(self, index: int) -> Words:
        """The words of a page; after it was drawn, it is not parsed again."""

    def close(self) -> None: ...


def parts_of(width: float, height: float) -> list[Box]:
    """The parts in which a page of these proportions is read: itself, or equal cuts across its longer side.

    A page beyond 1:4 is cut into parts of about 1:1.5, 64 at most: drawn in one it would be too small to read. A strip
    that is no page (`check_page`) is not cut.
    """
    aspect = max(width, height) / min(width, height)
    if not CUT_ABOVE < aspect <= MAX_ASPECT:
        return [WHOLE]
    count = min(MAX_PARTS, math.ceil(aspect / PART_ASPECT))
    edges = [i / count for i in range(count + 1)]
    return [(0.0, a, 1.0, b) if height > width else (a, 0.0, b, 1.0) for a, b in pairwise(edges)]


def part_size(width: float, height: float, box: Box) -> tuple[float, float]:
    left, top, right, bottom = box
    return width * (right - left), height * (bottom - top)


def cut_out(image: Image.Image, box: Box) -> Image.Image:
    """The part of a drawn page in `box`."""
    (width, height), (left, top, right, bottom) = image.size, box
    pixels = round(left * width), round(top * height), round(right * width), round(bottom * height)
    return image if box == WHOLE else image.crop(pixels)


def check_page(path: str, index: int, width: float, height: float, *, limit: float = math.inf) -> None:
    """Raise `TooLarge` for a page whose sides are not sound; `limit` is the longest side allowed."""
    sides = f"page {index + 1} measures {width:g} x {height:g}"
    if not (0 < width <= limit and 0 < height <= limit):
        raise TooLarge(path, f"{sides} points, more than is sound (up to {limit:,.0f}): correct the page box")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TooLarge(path, f"{sides}, a strip beyond 1:{MAX_ASPECT:g}: cut it into pages")
