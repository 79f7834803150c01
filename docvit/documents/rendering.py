"""How pages become pixels, and the protocol of everything that draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from docvit.documents.errors import TooLarge

if TYPE_CHECKING:  # settings of models and help texts need neither
    from PIL import Image

    from docvit.documents.words import Words

MAX_ASPECT = 50.0


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
    """An open file that can draw its pages and say their words; for the same page in a row, it is parsed once."""

    num_pages: int

    def render(self, index: int, rendering: Rendering) -> Image.Image: ...

    def words(self, index: int) -> Words: ...

    def close(self) -> None: ...


def check_page(path: str, index: int, width: float, height: float, *, limit: float = math.inf) -> None:
    """Raise `TooLarge` for a page whose sides are not sound; `limit` is the longest side allowed."""
    sides = f"page {index + 1} measures {width:g} x {height:g}"
    if not (0 < width <= limit and 0 < height <= limit):
        raise TooLarge(path, f"{sides} points, outside what PDF allows (up to {limit:,.0f}): correct the page box")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TooLarge(path, f"{sides}, a strip beyond 1:{MAX_ASPECT:g}: cut it into pages")
