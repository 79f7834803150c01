"""Empty sheets. A scan of one is not all white: it may show the sheet's edges, punch holes, noise and a shadow.

In doubt a page is not empty: what is taken for an edge is black and begins at the page's side, holes are black, alike
and symmetric, noise is alike everywhere and leaves no lines.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

BLACK = 64  # grey levels, at most, of edges and holes: there is no paper behind them

EDGE, MARGIN = 0.08, 0.1  # shares of a page's sides where edges and holes are looked for

HOLE = 3, 0.03  # px, and share of the page's longer side: the least and the greatest diameter of a hole

CELL = 16  # px; in a cell of an empty sheet, little differs

FAINT = 8  # grey levels, as of blank patches

GRAIN, SHADOW = 24, 64  # grey levels, at most, that noise spreads over half of the cells, and a shadow over the page


def is_empty_sheet(page: np.ndarray) -> bool:
    """Whether nothing is written or drawn on a page (H, W) or (H, W, 3) in uint8 but what a scanner leaves on any."""
    lightest = page if page.ndim == 2 else np.maximum.reduce([page[..., 0], page[..., 1], page[..., 2]])
    if _is_written(lightest):
        return False
    inside = _inside(lightest < BLACK)
    black = lightest[inside] < BLACK
    if min(black.shape) < 4 * CELL or np.median(lightest) < 2 * BLACK:  # a thumbnail, or no paper
        return False
    widest = HOLE[1] * max(page.shape)
    # ink may differ from coloured paper in the darkest or the lightest of the channels alone
    kinds = (lightest,) if page.ndim == 2 else (lightest, page.min(2))
    return all(_is_even(_without_holes(kind[inside], black, widest)) for kind in kinds)


def _is_written(lightest: NDArray[np.uint8]) -> bool:
    """Whether a cell in the middle differs more than noise and a shadow may: most pages need no second look."""
    edges = [int((EDGE + MARGIN) * side) + CELL // 2 for side in lightest.shape]
    rows, cols = ((side - 2 * edge) // CELL for side, edge in zip(lightest.shape, edges, strict=True))
    if rows < 1 or cols < 1:
        return False
    middle = lightest[edges[0] :, edges[1] :][: rows * CELL, : cols * CELL].reshape(rows, CELL, cols, CELL)
    return bool((np.ptp(middle, (1, 3)) > FAINT + 1.5 * GRAIN + SHADOW / 4).any())


def _is_even(sheet: NDArray[np.float32]) -> bool:
    """Whether nothing but a shadow and noise is on it."""
    starts = [np.append(np.arange(0, side - CELL, CELL), side - CELL) for side in sheet.shape]
    sheet -= _plane(sheet, starts)
    cells = sliding_window_view(sheet, (CELL, CELL))[np.ix_(*starts)]  # (rows, cols, CELL, CELL)
    spans, means = np.ptp(cells, (2, 3)), cells.mean((2, 3))
    lines = np.maximum(np.ptp(cells.mean(2), 2), np.ptp(cells.mean(3), 2))  # noise is averaged away, writing is not
    grain = np.median(spans)
    even = grain <= GRAIN and np.abs(means).max() <= FAINT
    return bool(even and (spans <= FAINT + 1.5 * grain).all() and (lines <= FAINT / 2 + 0.3 * grain).all())


def _inside(black: NDArray[np.bool_]) -> tuple[slice, slice]:
    """The page without black lines from its sides inwards, and without the blur beside them."""
    found = []
    for lines in (black.mean(1) > 0.9, black.mean(0) > 0.9):
        near = int(EDGE * len(lines))
        widths = (int(side[:near].cumprod().sum()) for side in (lines, lines[::-1]))
        first, last = (width and width + 2 for width in widths)
        found.append(slice(first, len(lines) - last))
    return found[0], found[1]


def _without_holes(sheet: NDArray[np.uint8], black: NDArray[np.bool_], widest: float) -> NDArray[np.float32]:
    """The sheet with its punch holes filled with the paper around them."""
    filled = sheet.astype(np.float32)
    for page, spots in ((filled, black), (filled.T, black.T)):
        width = int(MARGIN * page.shape[1])
        for margin in (slice(width), slice(page.shape[1] - width, None)):
            for top, bottom, left, right in _holes(spots[:, margin], widest):
                around = np.s_[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2]
                page[:, margin][around] = np.median(page[:, margin][around[0]])
    return filled


def _holes(black: NDArray[np.bool_], widest: float) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of two to four round spots, alike, one below the other, symmetric; else none."""
    ends = np.flatnonzero(np.diff(black.any(1), prepend=False, append=False))
    spots = []
    for top, bottom in zip(ends[::2], ends[1::2], strict=True):
        across = np.flatnonzero(black[top:bottom].any(0))
        left, right = across[0], across[-1] + 1
        sides = bottom - top, right - left
        filled = black[top:bottom, left:right].mean()  # pi / 4 of a round spot
        if min(sides) < HOLE[0] or max(sides) > widest or abs(sides[0] - sides[1]) > 2 or not 0.6 <= filled <= 0.95:
            return []
        spots.append((int(top), int(bottom), int(left), int(right)))
    if not 2 <= len(spots) <= 4:
        return []
    top, bottom, left, right = np.array(spots).T
    alike = max(np.ptp(bottom - top), np.ptp(left), np.ptp(right)) <= 2
    middles = (top + bottom) / 2
    off_centre = np.abs(middles + middles[::-1] - len(black)).max() / 2
    return spots if alike and off_centre <= 0.05 * len(black) else []


def _plane(sheet: NDArray[np.float32], starts: list[NDArray[np.intp]]) -> NDArray[np.float32]:
    """The plane (H, W) through the means of the cells, as far as a shadow may slope."""
    means = sliding_window_view(sheet, (CELL, CELL))[np.ix_(*starts)].mean((2, 3))
    y, x = (index.ravel() + (CELL - 1) / 2 for index in np.meshgrid(*starts, indexing="ij"))
    middle, down, across = np.linalg.lstsq(np.stack([np.ones_like(y), y, x], 1), means.ravel(), rcond=None)[0]
    rows, cols = (np.arange(side, dtype=np.float32) for side in sheet.shape)
    slope = down * rows[:, None] + across * cols[None]
    return middle + (slope if np.ptp(slope) <= SHADOW else slope.mean())
