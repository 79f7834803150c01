"""Empty sheets. A scan of one is not all white: it may show the sheet's edges, punch holes, noise and a shadow."""

from __future__ import annotations

import numpy as np

DARKER = 80  # grey levels by which an edge or a hole is darker than paper

EDGE, MARGIN = 0.08, 0.1  # shares of a page's sides where edges and holes are looked for

HOLE = 3, 0.03  # px, and share of the page's longer side: the least and the greatest diameter of a hole

CELL = 16  # px; in a cell of an empty sheet, little differs

FAINT = 8  # grey levels, as of blank patches

NOISE = 6, 14  # grey levels that differ in half of the cells: above the first a page is smoothed, above the second full


def is_empty_sheet(page: np.ndarray) -> bool:
    """Whether nothing is written or drawn on a page (H, W) or (H, W, 3) in uint8 but what a scanner leaves on any."""
    darkest, lightest = (page, page) if page.ndim == 2 else (page.min(2), page.max(2))
    paper = float(np.median(darkest))
    inside = _inside(lightest < paper - DARKER)
    sheet = darkest[inside].astype(np.float32)
    _fill_holes(sheet, lightest[inside] < paper - DARKER, HOLE[1] * max(page.shape))
    spans, lightest_of_cells = _measure(sheet)
    if np.median(spans) > NOISE[0]:
        spans, _ = _measure(_smooth(sheet))
    usual = float(np.median(spans))
    even = usual <= NOISE[1] and lightest_of_cells.min() > paper - DARKER
    return even and bool((spans <= FAINT + 2 * usual).all())


def _inside(dark: np.ndarray) -> tuple[slice, slice]:
    """The page without lines along its sides that are mostly dark, and without the blur beside them."""
    found = []
    for lines in (dark.mean(1) > 0.5, dark.mean(0) > 0.5):
        near = int(EDGE * len(lines))
        first, last = (max(np.flatnonzero(side[:near]) + 3, default=0) for side in (lines, lines[::-1]))
        found.append(slice(first, len(lines) - last))
    return found[0], found[1]


def _fill_holes(sheet: np.ndarray, dark: np.ndarray, widest: float) -> None:
    """Fills round dark spots in the margins with the paper around them."""
    for page, spots in ((sheet, dark), (sheet.T, dark.T)):
        width = int(MARGIN * page.shape[1])
        for margin in (slice(width), slice(page.shape[1] - width, None)):
            _fill_margin(page[:, margin], spots[:, margin], widest)


def _fill_margin(paper: np.ndarray, dark: np.ndarray, widest: float) -> None:
    ends = np.flatnonzero(np.diff(dark.any(1), prepend=False, append=False))
    for top, bottom in zip(ends[::2], ends[1::2], strict=True):
        across = np.flatnonzero(dark[top:bottom].any(0))
        left, right = across[0], across[-1] + 1
        height, width = bottom - top, right - left
        small = HOLE[0] <= min(height, width) and max(height, width) <= widest
        as_wide_as_high = abs(height - width) <= max(2, height / 3)
        if small and as_wide_as_high and dark[top:bottom, left:right].mean() > 0.6:
            around = np.s_[max(top - 2, 0) : bottom + 2, max(left - 2, 0) : right + 2]
            paper[around] = np.median(paper[around[0]])


def _measure(sheet: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the pixels of each cell differ, and the lightest of them."""
    sheet = np.pad(sheet, [(0, -side % CELL) for side in sheet.shape], mode="edge")
    cells = sheet.reshape(sheet.shape[0] // CELL, CELL, -1, CELL)
    lightest = cells.max((1, 3))
    return lightest - cells.min((1, 3)), lightest


def _smooth(sheet: np.ndarray) -> np.ndarray:
    """Means over 3 x 3 pixels."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(sheet, 1, mode="edge"), (3, 3)).mean((2, 3))
