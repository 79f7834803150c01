"""Fixed features of patches and statistics of pages for the ink stem; nothing in here is learned."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from docvit.documents.patches import PatchSequence

CELL = 16  # px

ORIENTATIONS, SCALES = 8, 3

MODULATED = 4  # orientations whose modulation is measured

FAINTEST = 0.4  # of differences across and down, together, where a pixel counts as lying on an edge

SIDE = 256  # lines that are read of a page, down and across; of one that is far larger, thin rules may be missed

BINS = 32, 16  # of its profiles, down and across

LAYOUT = 1 + 2 * 2 + sum(BINS) + 2 * 5  # statistics: aspect ratio, bounds, profiles; rows and gaps, 5 each


class InkMaps(NamedTuple):
    """Measurements of T patches of side P, in cells of 16 px (c = P / 16 per side) or over the whole patch.

    Attributes:
        ink: (T, K, c, c) mean of the pixels of a cell, and on RGB, where K is 2 instead of 1, how colourful it is.
        edges: at each scale (T, O, c, c), strength of edges in each of O directions.
        modulation: (T, S * 3 * 4) at each scale and in four directions: strength of edges, and its mean change from one
            pixel to the next, across and down.
        lines: (T, 3 P / 4 + 1) autocorrelation of edge strength from row to row of pixels, which peaks at the distance
            of text lines.
        rows, cols: (T, P) how many pixels of each of the patch's rows and columns lie on an edge.
    """

    ink: Tensor
    edges: list[Tensor]
    modulation: Tensor
    lines: Tensor
    rows: Tensor
    cols: Tensor


def sizes(in_chans: int, patch_size: int) -> tuple[int, int]:
    """Number of features per patch, and of statistics per page."""
    kinds = 1 if in_chans == 1 else 2
    of_cells = 2 * (kinds + 2 * SCALES * ORIENTATIONS)
    texture = of_cells + 2 * SCALES * MODULATED + _lags(patch_size)
    return (patch_size // CELL) ** 2 * (kinds + 2 * ORIENTATIONS), texture + LAYOUT


def _lags(patch_size: int) -> int:
    return 3 * patch_size // 4


def measure(pixels: Tensor) -> InkMaps:
    """Measures patches (T, C, P, P), normalised by one mean and one deviation for all channels."""
    ink, cell, edges = pixels.mean(1, keepdim=True), CELL, []  # (T, 1, P, P)
    of_cells = [F.avg_pool2d(ink, cell)]
    if pixels.shape[1] > 1:
        chroma = pixels.amax(1, keepdim=True) - pixels.amin(1, keepdim=True)
        of_cells.append(F.avg_pool2d(chroma, cell).sqrt())
    across, down = _gradient(ink)
    modulation, lines = _modulation(across, down), _lines(across)
    on_edge = across.abs() + down.abs() > FAINTEST  # (T, P, P)
    for scale in range(SCALES):
        if scale:
            ink, cell = F.avg_pool2d(ink, 2), cell // 2
            across, down = _gradient(ink)
        edges.append(_edges(across, down, cell).sqrt())
    return InkMaps(torch.cat(of_cells, 1), edges, modulation, lines, on_edge.sum(2), on_edge.sum(1))


def _gradient(ink: Tensor) -> tuple[Tensor, Tensor]:
    """Differences across and down, within the patch: (T, 1, S, S) -> (T, S, S) each"""
    padded = F.pad(ink, (1, 1, 1, 1), mode="replicate")[:, 0]
    return padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2], padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]


def _edges(across: Tensor, down: Tensor, cell: int) -> Tensor:
    """Rectified directional derivatives, averaged over cells: (T, S, S) -> (T, O, S / cell, S / cell)"""
    across, down = (rearrange(g, "t (r y) (c x) -> t r y c x", y=cell, x=cell) for g in (across, down))
    angles = [i * math.pi / ORIENTATIONS for i in range(ORIENTATIONS)]
    # one direction at a time: on the CPU four times as fast as all of them at once, which overflow its caches
    return torch.stack([(math.cos(a) * across + math.sin(a) * down).abs().mean((2, 4)) for a in angles], 1)


def _modulation(across: Tensor, down: Tensor) -> Tensor:
    """(T, P, P) -> (T, S * 3 * 4)"""
    found = []
    for along in (across, down, (across + down) * math.sqrt(0.5), (across - down) * math.sqrt(0.5)):
        strength = along.abs()[:, None]
        for _ in range(SCALES):
            strength = F.avg_pool2d(strength, 2)
            changes = strength.diff(dim=3).abs(), strength.diff(dim=2).abs()
            found += [x.mean((1, 2, 3)) for x in (strength, *changes)]
    return rearrange(torch.stack(found, 1), "t (o s f) -> t (s f o)", s=SCALES, f=3)


def _lines(across: Tensor) -> Tensor:
    """(T, P, P) -> (T, L + 1), the first of them without a shift"""
    rows, size = across.abs().mean(2), across.shape[1]
    rows = rows - rows.mean(1, keepdim=True)
    shifted = F.pad(rows, (0, _lags(size))).unfold(1, size, 1)  # (T, L + 1, P)
    return (rows[:, None] * shifted).sum(2) / (2 * size)


def patch_features(maps: InkMaps) -> Tensor:
    """(T, features): ink, and edges at the two finer scales divided by their norm over the patch."""
    # 0.3: about a faint hairline
    edges = [e / (e.square().sum((1, 2, 3), keepdim=True).sqrt() + 0.3) for e in maps.edges[:2]]
    return torch.cat([part.flatten(1) for part in (maps.ink, *edges)], 1)


def page_statistics(maps: InkMaps, batch: PatchSequence, page_lengths: Tensor) -> Tensor:
    """(N, statistics): texture and layout; `page_lengths` (N,) patches of each page, on their device."""
    return torch.cat([_texture(maps, page_lengths), _layout(maps, batch, page_lengths)], 1)


def _texture(maps: InkMaps, page_lengths: Tensor) -> Tensor:
    """Statistics that do not depend on where on the page the ink lies."""

    def total(x: Tensor) -> Tensor:
        return torch.segment_reduce(x, "sum", lengths=page_lengths, unsafe=True, initial=0.0)

    # mean and deviation over inked cells, of edges as they are and divided by their norm in the cell
    within = [e / (e.square().sum(1, keepdim=True).sqrt() + 0.05) for e in maps.edges]
    cells = torch.cat([maps.ink, *maps.edges, *within], 1).flatten(2)  # (T, features of a cell, cells)
    inked = (cells[:, maps.ink.shape[1] :].sum(1, keepdim=True) > 0.02).float()
    count, summed, squares = (total((cells**power * inked).sum(2)) for power in (0, 1, 2))
    mean, square = summed / count.clamp(min=1), squares / count.clamp(min=1)
    deviation = (square - mean.square()).clamp(min=1e-6).sqrt()

    patches = total(inked.amax(2)).clamp(min=1)  # with ink, for blank ones must change nothing
    strength, changes = (total(maps.modulation) / patches).unflatten(1, (SCALES, 3, MODULATED)).split([1, 2], 2)
    # 0.04 and 3e-5: far below what lines of pale text give, so that nearly empty pages give almost zero
    modulation = (changes / (strength + 0.04)).flatten(1)
    unshifted, shifted = (total(maps.lines) / patches).tensor_split([1], 1)
    return torch.cat([mean, deviation, modulation, shifted / (unshifted + 3e-5)], 1)


def _layout(maps: InkMaps, batch: PatchSequence, page_lengths: Tensor) -> Tensor:
    """Where on the page the ink lies: bounds, profiles down and across, heights of rows and of the gaps between."""
    pages = torch.arange(batch.num_pages, device=page_lengths.device)
    page = pages.repeat_interleave(page_lengths, output_size=batch.num_patches)
    sides = batch.grids * maps.rows.shape[1]  # (N, 2) height and width in px
    down = _profile(maps.rows, page, batch.row, sides[:, 0]) / sides[:, 1:]
    across = _profile(maps.cols, page, batch.col, sides[:, 1]) / sides[:, :1]
    found = [sides[:, 1:] / sides[:, :1]]
    for profile, bins in zip((down, across), BINS, strict=True):
        inked = profile > 0.005
        before, after = inked.cumsum(1), inked.flip(1).cumsum(1).flip(1)
        empty = torch.stack([(before == 0).sum(1), (after == 0).sum(1)], 1)  # above and below, or left and right
        found += [empty / SIDE, profile.unflatten(1, (bins, -1)).mean(2)]
        if profile is down:
            found += [_runs(inked), _runs(~inked & (before > 0) & (after > 0))]
    return torch.cat(found, 1)


def _profile(counts: Tensor, page: Tensor, at: Tensor, sides: Tensor) -> Tensor:
    """Counts in each patch's lines (T, P), by patches' rows or columns `at` (T,), on pages `sides` px long: (N, SIDE)

    In integers, so that the sums are the same in whichever order a device adds; and without reading anything back from
    it, such as the length of the longest page.
    """
    size, most = counts.shape[1], 2**20
    keys, order = (page * most + at).sort(stable=True)
    before = F.pad(counts.index_select(0, order).cumsum(0), (0, 0, 1, 0))  # (T + 1, P)
    steps = torch.arange(SIDE, device=sides.device)
    line = (2 * steps + 1) * sides[:, None] // (2 * SIDE)  # (N, SIDE) in px
    wanted = torch.arange(sides.shape[0], device=sides.device)[:, None] * most + line // size
    begin, end = torch.searchsorted(keys, wanted), torch.searchsorted(keys, wanted, right=True)
    return before[end, line % size] - before[begin, line % size]


def _runs(on: Tensor) -> Tensor:
    """Of the runs in each row of (N, S): how many there are, their mean, greatest, first and last length: (N, 5)"""
    steps = torch.arange(1, on.shape[1] + 1, device=on.device).expand(on.shape)
    lengths = steps - torch.where(on, 0, steps).cummax(1).values  # of the run so far
    ends = on & ~F.pad(on[:, 1:], (0, 1))
    count, lengths = ends.sum(1), torch.where(ends, lengths, 0)
    first = lengths.gather(1, ends.int().argmax(1, keepdim=True))
    last = lengths.gather(1, torch.where(ends, steps - 1, 0).amax(1, keepdim=True))
    mean = lengths.sum(1) / count.clamp(min=1)
    return torch.stack([count, mean, lengths.amax(1), first[:, 0], last[:, 0]], 1) / on.shape[1]
