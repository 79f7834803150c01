"""Positional schemes: how a patch's address (page, row, column) reaches the model. One small class each.

A scheme gives an embedding for every patch and one for every page's class token, both added once, before the first
block; a scheme that acts inside attention instead (rotary) gives angles. Learned tables interpolate beyond what they
were trained on, with their ends kept; formulas extrapolate.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.documents.patches import PatchSequence
from docvit.errors import SettingError
from docvit.model.config import DocViTConfig
from docvit.model.init import trunc_normal_


class Positions(nn.Module):
    """Base: the interface, and no position at all. D is the config's `embed_dim`."""

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__()
        self.dim, self.grid = config.embed_dim, config.grid

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

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__(config)
        self.spatial = nn.Parameter(torch.empty(*self.grid, self.dim))
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

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__(config)
        self.page = nn.Parameter(torch.empty(config.page_embeddings, self.dim))
        trunc_normal_(self.page, std=0.02)

    def patches(self, batch: PatchSequence) -> Tensor:
        return super().patches(batch) + F.embedding(batch.page_of_patch.to(batch.page.device), self.pages(batch))

    def pages(self, batch: PatchSequence) -> Tensor:
        lengths = batch.document_lengths
        index, size = batch.page_index, len(self.page)
        return interpolate_1d(self.page, torch.where(lengths > size, stretch(index, lengths, size), index.float()))


class Continued(Positions):
    """Learned embedding of one number that runs on over the pages: 1 2 3 4 on a 2 x 2 page, 5 6 7 8 on the next.

    A class token has the first number of its page. The table holds rows * cols * `page_embeddings` numbers; a document
    with more of them, for its pages or their grids, reads it linearly, its first and last number on the table's ends.
    """

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__(config)
        self.number = nn.Parameter(torch.empty(math.prod(self.grid) * config.page_embeddings, self.dim))
        trunc_normal_(self.number, std=0.02)

    def patches(self, batch: PatchSequence) -> Tensor:
        first, totals = first_numbers(batch)
        page = batch.page_of_patch.to(first.device)
        return self._read(patch_numbers(batch, first), totals[page])

    def pages(self, batch: PatchSequence) -> Tensor:
        return self._read(*first_numbers(batch))

    def _read(self, number: Tensor, total: Tensor) -> Tensor:
        size, number = len(self.number), number.double()  # a table is long: in float32 its end would not be met
        return interpolate_1d(self.number, torch.where(total > size, stretch(number, total, size), number))


class Sinusoid(Positions):
    """The text transformer's sinusoid of the continued number, counted from 0; a class token has its page's first.

    Nothing is learned: it extrapolates to any document and any grid.

    Raises:
        ValueError: `embed_dim` is odd.
    """

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__(config)
        if self.dim % 2:
            raise SettingError(f"positions 'sincos' need an even width, not {self.dim}")

    def patches(self, batch: PatchSequence) -> Tensor:
        return sinusoid(patch_numbers(batch, first_numbers(batch)[0]), self.dim)

    def pages(self, batch: PatchSequence) -> Tensor:
        return sinusoid(first_numbers(batch)[0], self.dim)


class Sinusoid2DPage(Positions):
    """Fixed 2D sinusoid, half the width for the row and half for the column, plus a sinusoid of the page index.

    A class token has that of its page alone. Nothing is learned; it extrapolates to any document and any grid. The 2D
    part is that of MoCo v3 and MAE (arXiv 2104.02057, 2111.06377).

    Raises:
        ValueError: `embed_dim` is not a multiple of 4.
    """

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__(config)
        if self.dim % 4:
            raise SettingError(f"positions 'sincos2d+page' need a width that is a multiple of 4, not {self.dim}")

    def patches(self, batch: PatchSequence) -> Tensor:
        spatial = torch.cat([sinusoid(batch.row, self.dim // 2), sinusoid(batch.col, self.dim // 2)], 1)
        return spatial + F.embedding(batch.page_of_patch.to(batch.page.device), self.pages(batch))

    def pages(self, batch: PatchSequence) -> Tensor:
        return sinusoid(batch.page_index, self.dim)


class Rotary(Positions):
    """Queries and keys turned by page, row and column (RoFormer, arXiv 2104.09864, on three axes).

    A head's pairs of channels are shared among the axes, so that attention depends on differences of page, row and
    column alone. A class token stands at row 0, column 0 of its page: what separates it from a patch is the patch's own
    row and column, and from another page's class token the pages between them. A block that sees single pages has no
    difference of pages to see. Nothing is learned; it extrapolates to any document and any grid.

    Raises:
        ValueError: heads of an odd width, or without a pair of channels for each axis.
    """

    base = 100.0  # a full turn takes from 6 to some hundred pages, rows or columns; text, with 10000, counts further

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__(config)
        head_dim = config.embed_dim // config.num_heads
        if head_dim % 2 or head_dim < 6:
            raise SettingError(f"positions 'rope' need heads of an even width of 6 or more, not {head_dim}")
        self.pairs = [(head_dim // 2 + axis) // 3 for axis in range(3)]  # of page, row, column

    def angles(self, batch: PatchSequence) -> tuple[Tensor, Tensor]:
        corner = torch.zeros_like(batch.page_index)
        return self._turn(batch.page, batch.row, batch.col), self._turn(batch.page_index, corner, corner)

    def _turn(self, *address: Tensor) -> Tensor:
        turns = [phases(x, pairs, self.base) for x, pairs in zip(address, self.pairs, strict=True)]
        return torch.cat(turns, 1).float()


# their names stand in `docvit.model.config.POSITIONS`, too, which help texts list without torch
SCHEMES: dict[str, type[Positions]] = {
    "page-independent": PageIndependent,
    "continued": Continued,
    "sincos": Sinusoid,
    "sincos2d+page": Sinusoid2DPage,
    "spatial+page": SpatialPage,
    "rope": Rotary,
}


def first_numbers(batch: PatchSequence) -> tuple[Tensor, Tensor]:
    """The continued number at which each page begins, counted from 0, and how many its document has: (N,), (N,).

    Every cell of a page's grid counts, so that leaving blank patches out renumbers nothing. Pages that were not read
    count as many cells as the page read before them (those before the first one read, as many as that one).
    """
    index, cells = batch.page_index, batch.grids.prod(1)
    document = batch.document_of_page.to(index.device)
    opening = batch.document_bounds[:-1].to(index.device)  # (B,) first page of each document
    steps = cells.roll(1) * (index - index.roll(1))
    steps = steps.index_copy(0, opening, (cells * index)[opening])
    run = steps.cumsum(0)
    first = run - (run - steps)[opening][document]
    totals = torch.zeros_like(opening).scatter_reduce(0, document, first + cells, "amax")
    return first, totals[document]


def patch_numbers(batch: PatchSequence, first: Tensor) -> Tensor:
    """The continued number (T,) of every patch, given that of every page's first cell (N,)."""
    page = batch.page_of_patch.to(first.device)
    return first[page] + batch.row * batch.grids[:, 1][page] + batch.col


def phases(x: Tensor, count: int, base: float) -> Tensor:
    """`x` (T,) at `count` frequencies from 1 down to nearly 1 / base: (T, count), in float64.

    In float32 the phase of the hundred-thousandth patch of a long document would already be wrong.
    """
    frequencies = base ** -(torch.arange(count, dtype=torch.float64, device=x.device) / count)
    return x[:, None] * frequencies


def sinusoid(x: Tensor, dim: int) -> Tensor:
    """sin and cos of `x` (T,) in turns, wavelengths from 2 pi to 10000 * 2 pi: (T, dim).

    "Attention Is All You Need", section 3.5.
    """
    angles = phases(x, dim // 2, 10_000.0)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1).float()


def stretch(index: Tensor, length: Tensor, table: int) -> Tensor:
    """Index 0..length-1 onto 0..table-1, ends on ends; a length of one lands on 0."""
    return index * (table - 1) / (length - 1).clamp(min=1)  # multiplied first: integers, so that the ends are exact


def interpolate_1d(table: Tensor, x: Tensor) -> Tensor:
    """Rows of `table` (S, D) at fractional indices `x` (T,), linearly: (T, D)."""
    low = x.floor().long().clamp(0, len(table) - 1)
    high = (low + 1).clamp(max=len(table) - 1)
    # F.embedding and not table[low]: with several threads, indexing adds up its gradient in no fixed order; and once,
    # since each time its gradient is as large as the table
    below, above = F.embedding(torch.stack([low, high]), table)
    return torch.lerp(below, above, (x - low)[:, None].to(table.dtype))


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


def resample(table: Tensor, shape: torch.Size) -> Tensor:
    """A learned table (S, D) or (R, C, D) at another number of entries, corners kept; as it is where D differs."""
    if table.shape == shape or table.ndim != len(shape) or table.shape[-1] != shape[-1]:
        return table
    axes = [torch.linspace(0, old - 1, new) for old, new in zip(table.shape[:-1], shape[:-1], strict=True)]
    if len(axes) == 1:
        return interpolate_1d(table.float(), axes[0])
    row, col = (a.flatten() for a in torch.meshgrid(*axes, indexing="ij"))
    return interpolate_2d(table.float(), row, col).reshape(shape)
