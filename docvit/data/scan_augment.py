"""Pages as scanners, fax machines, phones and copiers leave them; at the size of a model's pages."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

CHANCE = 0.5  # of each trace of a scanner, in a document that has any


@dataclass(frozen=True)
class Scanner:
    """What one scanner, fax machine, phone or copier does to all pages of a document; 0, or None, for no trace.

    Attributes:
        bits: steepness with which grey becomes black or white.
        threshold: ink, in 0..1, that becomes half black.
        fade: share of the ink that is lost.
        paper: ink of the paper itself.
        shadow: (x, y) ink that paper gains towards a side.
        blur: share in which a pixel becomes the mean of its neighbours.
        noise: standard deviation of the noise.
        jpeg: quality.
        border: widths of the dark borders left, top, right and bottom, as shares of the page.
        holes: number of punch holes.
        bleed: share of the ink of another page that shines through.
    """

    bits: float = 0.0
    threshold: float = 0.5
    fade: float = 0.0
    paper: float = 0.0
    shadow: tuple[float, float] = (0.0, 0.0)
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int | None = None
    border: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    holes: int = 0
    bleed: float = 0.0


def draw_scanner(random: np.random.Generator) -> Scanner:
    """A scanner with a random choice of traces."""

    def maybe(low: float, high: float) -> float:
        return float(random.uniform(low, high)) if random.random() < CHANCE else 0.0

    bits = maybe(5, 25)
    return Scanner(
        bits=bits,
        border=tuple(maybe(0, 0.04) if random.random() < CHANCE / 2 else 0.0 for _ in range(4)),
        threshold=float(random.uniform(0.25, 0.6)),
        fade=maybe(0, 0.4),
        paper=0.0 if bits else maybe(0, 0.15),
        shadow=(0.0, 0.0) if bits else (maybe(-0.15, 0.15), maybe(-0.15, 0.15)),
        blur=maybe(0, 1),
        noise=maybe(0, 0.05),
        jpeg=int(random.integers(30, 90)) if random.random() < CHANCE else None,
        holes=int(random.choice([2, 4])) if random.random() < CHANCE / 2 else 0,
        bleed=maybe(0, 0.15),
    )


def scan(pages: Sequence[Tensor], scanner: Scanner, random: np.random.Generator) -> list[Tensor]:
    """Ink (C, H, W) in 0..1 of the pages of one document, as `scanner` leaves it: grey, and of the same sizes."""
    inks = [page.mean(0, keepdim=True) for page in pages]  # (1, H, W)
    return [_leave(ink, _behind(inks, n), scanner, random).expand_as(pages[n]) for n, ink in enumerate(inks)]


def _behind(inks: list[Tensor], n: int) -> Tensor | None:
    """The page that lies behind page n, or its reverse, if it has the same size."""
    other = inks[n + 1 if n + 1 < len(inks) else n - 1]
    return other if len(inks) > 1 and other.shape == inks[n].shape else None


def _leave(ink: Tensor, behind: Tensor | None, s: Scanner, random: np.random.Generator) -> Tensor:
    _, height, width = ink.shape
    if s.bleed and behind is not None:
        ink = ink + s.bleed * behind.flip(2)
    if s.blur:
        ink = torch.lerp(ink, F.avg_pool2d(ink, 3, 1, 1, count_include_pad=False), s.blur)
    ink = s.paper + (1 - s.paper) * (1 - s.fade) * ink
    for size, dim, gain in ((width, 2, s.shadow[0]), (height, 1, s.shadow[1])):
        if gain:
            slope = torch.linspace(0, abs(gain), size)
            ink = ink + (slope if gain > 0 else slope.flip(0)).view([-1 if n == dim else 1 for n in range(3)])
    if s.bits:
        steep = torch.sigmoid(s.bits * (torch.stack([ink, torch.zeros_like(ink), torch.ones_like(ink)]) - s.threshold))
        ink = (steep[0] - steep[1]) / (steep[2] - steep[1])  # 0 and 1 stay what they are
    if s.noise:
        ink = ink + s.noise * torch.from_numpy(random.standard_normal(ink.shape, dtype=np.float32))
    ink = _border(ink.clamp(0, 1), s)
    return ink if s.jpeg is None else _compress(ink, s.jpeg)


def _border(ink: Tensor, s: Scanner) -> Tensor:
    """Dark borders, where the scanner sees past the sheet, and holes along the left edge, which are as dark."""
    _, height, width = ink.shape
    ink, dark = ink.clone(), 0.9
    left, top, right, bottom = (round(share * size) for share, size in zip(s.border, (width, height) * 2, strict=True))
    for part in (ink[:, :, :left], ink[:, :top], ink[:, :, width - right :], ink[:, height - bottom :]):
        part.fill_(dark)
    radius = 0.012 * max(height, width)
    y, x = torch.arange(height)[:, None], torch.arange(width)[None]
    for n in range(s.holes):
        centre = height * (n + 1) / (s.holes + 1)
        ink[:, (y - centre) ** 2 + (x - 0.045 * width) ** 2 < radius**2] = dark
    return ink


def _compress(ink: Tensor, quality: int) -> Tensor:
    file = io.BytesIO()
    Image.fromarray((255 * (1 - ink[0])).byte().numpy()).save(file, "jpeg", quality=quality)
    return 1 - torch.from_numpy(np.array(Image.open(file))).float()[None] / 255
