"""Positional schemes: how a patch's address (page, row, column) reaches the model. One small class each.

A scheme gives an embedding for every patch and one for every page's class token, both added once, before the first
block; a scheme that acts inside attention instead (rotary) gives angles.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from docvit.patches import PatchSequence


class Positions(nn.Module):
    """Base: the interface, and no position at all.

    Args:
        dim: D, width of the tokens.
        grid: (rows, cols) of the learned spatial table.
        max_pages: length of the learned page table.
        head_dim: width of an attention head.
    """

    def __init__(self, dim: int, *, grid: tuple[int, int], max_pages: int, head_dim: int) -> None:
        super().__init__()
        self.dim, self.grid, self.max_pages, self.head_dim = dim, grid, max_pages, head_dim

    def patches(self, batch: PatchSequence) -> Tensor | None:
        """(T, D) added to the patches, or None."""
        return None

    def pages(self, batch: PatchSequence) -> Tensor | None:
        """(N, D) added to the class tokens of the pages, or None."""
        return None

    def angles(self, batch: PatchSequence) -> tuple[Tensor, Tensor] | None:
        """Rotation angles (T, head_dim / 2) of patches and (N, head_dim / 2) of class tokens, or None."""
        return None


class PageIndependent(Positions):
    """Learned 2D embedding of (row, column); every page is numbered alike, so page order is invisible.

    The table covers a page from corner to corner: a page whose grid differs from the table's reads it bilinearly, with
    the corners kept. Longer documents need nothing.
    """

    def __init__(self, dim: int, *, grid: tuple[int, int], max_pages: int, head_dim: int) -> None:
        super().__init__(dim, grid=grid, max_pages=max_pages, head_dim=head_dim)
        self.spatial = nn.Parameter(torch.empty(*grid, dim))
        trunc_normal_(self.spatial, std=0.02)

    def patches(self, batch: PatchSequence) -> Tensor:
        cells = batch.grids[batch.page_of_patch.to(batch.grids.device)]  # (T, 2)
        row = stretch(batch.row, cells[:, 0], self.grid[0])
        col = stretch(batch.col, cells[:, 1], self.grid[1])
        return interpolate_2d(self.spatial, row, col)


class SpatialPage(PageIndependent):
    """Learned 2D embedding of (row, column) plus a learned embedding of the page index: the default.

    A document longer than the page table reads it linearly, first and last page on its ends.
    """

    def __init__(self, dim: int, *, grid: tuple[int, int], max_pages: int, head_dim: int) -> None:
        super().__init__(dim, grid=grid, max_pages=max_pages, head_dim=head_dim)
        self.page = nn.Parameter(torch.empty(max_pages, dim))
        trunc_normal_(self.page, std=0.02)

    def patches(self, batch: PatchSequence) -> Tensor:
        return super().patches(batch) + F.embedding(batch.page_of_patch.to(batch.page.device), self.pages(batch))

    def pages(self, batch: PatchSequence) -> Tensor:
        lengths = batch.document_lengths
        index, longer = batch.page_index, lengths > self.max_pages
        return interpolate_1d(self.page, torch.where(longer, stretch(index, lengths, self.max_pages), index.float()))


POSITIONS: dict[str, type[Positions]] = {
    "page-independent": PageIndependent,
    "spatial+page": SpatialPage,
}


def create_positions(name: str, dim: int, *, grid: tuple[int, int], max_pages: int, head_dim: int) -> Positions:
    """The scheme called `name`.

    Raises:
        ValueError: there is no such scheme.
    """
    if name not in POSITIONS:
        raise ValueError(f"no positional scheme {name!r}: choose one of {', '.join(POSITIONS)}")
    return POSITIONS[name](dim, grid=grid, max_pages=max_pages, head_dim=head_dim)


def stretch(index: Tensor, length: Tensor, table: int) -> Tensor:
    """Index 0..length-1 onto 0..table-1, ends on ends; a length of one lands on 0."""
    return index * (table - 1) / (length - 1).clamp(min=1)  # multiplied first: integers, so that the ends are exact


def interpolate_1d(table: Tensor, x: Tensor) -> Tensor:
    """Rows of `table` (S, D) at fractional places `x` (T,), linearly: (T, D)."""
    low = x.floor().long().clamp(0, len(table) - 1)
    high = (low + 1).clamp(max=len(table) - 1)
    # F.embedding and not table[low]: with several threads, indexing adds up its gradient in no fixed order
    return torch.lerp(F.embedding(low, table), F.embedding(high, table), (x - low)[:, None].to(table.dtype))


def interpolate_2d(table: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Cells of `table` (R, C, D) at fractional `row` and `col` (T,), bilinearly: (T, D)."""
    rows, cols, _ = table.shape
    top, left = row.floor().long().clamp(0, rows - 1), col.floor().long().clamp(0, cols - 1)
    bottom, right = (top + 1).clamp(max=rows - 1), (left + 1).clamp(max=cols - 1)
    down, across = (row - top)[:, None].to(table.dtype), (col - left)[:, None].to(table.dtype)
    cells = table.flatten(0, 1)
    upper = torch.lerp(F.embedding(top * cols + left, cells), F.embedding(top * cols + right, cells), across)
    lower = torch.lerp(F.embedding(bottom * cols + left, cells), F.embedding(bottom * cols + right, cells), across)
    return torch.lerp(upper, lower, down)
