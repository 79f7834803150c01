"""Random changes to pages that keep their class: geometry, ink weight, contrast, colour, and scanned copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from docvit.data.scan_augment import draw_scanner, scan


@dataclass(frozen=True)
class Augmentation:
    """Limits of the random changes: drawn once per document, whose pages share a printer, plus a little per page.

    Each document also draws a strength between 0 and 1 that scales all changes. Otherwise unchanged pages, which are
    what a model sees in use, would be rare in training.

    Attributes:
        shift: largest displacement, as a share of the page.
        scale: largest log-scale, up or down.
        stretch: largest change of the log aspect ratio.
        rotate: largest rotation in radians (a crooked scan).
        shear: largest shear.
        ink: largest change of stroke weight: 1 gives every pixel the ink of its darkest neighbour, or takes six tenths
            of the way to the lightest.
        contrast: largest share by which the ink is made paler.
        grey: probability that a document loses its colours (a copy, a print).
        scan: probability that a document is a scanned copy (`docvit.data.scan_augment`).
    """

    shift: float = 0.08
    scale: float = 0.3
    stretch: float = 0.12
    rotate: float = 0.02
    shear: float = 0.02
    ink: float = 0.7
    contrast: float = 0.4
    grey: float = 0.3
    scan: float = 0.5


class _Changes(NamedTuple):
    """What is drawn for a document: where its pages move, and what becomes of their ink."""

    moves: list[dict[str, float]]  # of each page, as `_affine` takes them
    weight: float
    pale: float
    grey: bool


def _draw(count: int, s: Augmentation, random: np.random.Generator) -> _Changes:
    strength = float(random.uniform(0, 1))

    def draw(limit: float, share: float = 1.0) -> float:
        return float(random.uniform(-limit, limit)) * share * strength

    scale, stretch, rotate, shear = draw(s.scale), draw(s.stretch), draw(s.rotate), draw(s.shear)
    x, y = draw(s.shift), draw(s.shift)
    weight, pale = draw(s.ink), abs(draw(s.contrast))
    random.random(2)  # drawn for nothing: without it the seeds of published results would give other pages
    grey = bool(random.random() < s.grey)
    moves = []
    for _ in range(count):
        of_page = {"x": x + draw(s.shift, 0.3), "y": y + draw(s.shift, 0.3), "scale": scale + draw(s.scale, 0.2)}
        moves.append({**of_page, "stretch": stretch, "rotate": rotate, "shear": shear})
    return _Changes(moves, weight, pale, grey)


def augment(pages: Sequence[np.ndarray], settings: Augmentation, random: np.random.Generator) -> list[Tensor]:
    """Changes the pages of one document: (H, W) or (H, W, 3) uint8 -> (C, H, W) float in 0..1, of the same size.

    Works on ink (1 - brightness), so that what enters from outside the page is white paper.
    """
    changes = _draw(len(pages), settings, random)
    inks = []
    for page, move in zip(pages, changes.moves, strict=True):
        pixels = torch.from_numpy(np.atleast_3d(page)).permute(2, 0, 1).float() / 255
        ink = 1 - pixels  # (C, H, W)
        if changes.grey:
            ink = ink.mean(0, keepdim=True).expand_as(ink)
        inks.append(_change_weight(_move(ink[None], move), changes.weight)[0] * (1 - changes.pale))
    if settings.scan and random.random() < settings.scan:
        inks = scan(inks, draw_scanner(random), random)
    return [1 - ink for ink in inks]


def move_maps(maps: Sequence[Tensor], settings: Augmentation, random: np.random.Generator) -> list[Tensor]:
    """Moves maps (C, R, W) of a document's pages as `augment` moves the pages, given a generator in the same state.

    Cells are squares of the page. What enters from outside is as the map's edge is.
    """
    moves = _draw(len(maps), settings, random).moves
    return [_move(m[None], move, padding="border")[0] for m, move in zip(maps, moves, strict=True)]


def _move(images: Tensor, move: Mapping[str, float], padding: str = "zeros") -> Tensor:
    theta = _affine(**move, aspect=images.shape[2] / images.shape[3])
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def _affine(*, scale: float, stretch: float, rotate: float, shear: float, x: float, y: float, aspect: float) -> Tensor:
    """(1, 2, 3) from output to input coordinates, in the -1..1 of `affine_grid`; `aspect` is height / width."""
    across, down = float(np.exp(scale + stretch)), float(np.exp(scale - stretch))
    cos, sin = float(np.cos(rotate)), float(np.sin(rotate))
    # both axes run from -1 to 1, however long they are: terms that mix them need the aspect ratio
    return torch.tensor(
        [[[across * cos, -across * (sin + shear) * aspect, 2 * x], [down * sin / aspect, down * cos, 2 * y]]]
    )


def _change_weight(ink: Tensor, weight: float) -> Tensor:
    """Heavier (weight > 0) or lighter strokes: towards the 3 x 3 maximum or minimum."""
    if weight > 0:
        return torch.lerp(ink, _extreme(ink, torch.maximum), weight)
    return torch.lerp(ink, _extreme(ink, torch.minimum), -weight * 0.6)  # thin strokes must not vanish


def _extreme(ink: Tensor, choose: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The maximum or minimum over 3 x 3 pixels, by rows and then by columns: six times `max_pool2d`'s speed on CPUs."""
    for dim in (2, 3):
        length = ink.shape[dim]
        near = choose(ink.narrow(dim, 0, length - 1), ink.narrow(dim, 1, length - 1))  # of two neighbours
        first, last = near.narrow(dim, 0, 1), near.narrow(dim, length - 2, 1)
        inner = choose(near.narrow(dim, 0, length - 2), near.narrow(dim, 1, length - 2))
        ink = torch.cat([first, inner, last], dim)
    return ink
