"""Draw the picture of the idea, `examples/pictures/idea.png`: run `python examples/pictures/idea.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as PathShape

INK, SOFT, FAINT = "#26323f", "#6d7a88", "#c9d1d9"
PATCH = 4.6  # a patch on its page
TOKEN = 1.72  # the same patch in the sequence


@dataclass(frozen=True)
class Page:
    """A page as rows of letters: T title, t text, i image, a dot where the patch is blank."""

    rows: tuple[str, ...]
    left: float
    top: float
    color: str
    dark: str
    index: int
    marked: tuple[int, int]

    @property
    def kept(self) -> list[tuple[int, int]]:
        return [(r, c) for r, row in enumerate(self.rows) for c, kind in enumerate(row) if kind != "."]

    def corner(self, row: int, col: int) -> tuple[float, float]:
        """Lower left corner of a patch."""
        return self.left + col * PATCH, self.top - (row + 1) * PATCH


PAGES = (
    Page((".TT.", "tttt", "tt..", "iitt", "...."), 4, 63, "#dbe8fb", "#2f6fc4", 1, (1, 0)),
    Page(("tttt", "tt..", ".ii.", ".ii.", "tt.."), 26.5, 63, "#d8f0e3", "#1f8a5b", 2, (2, 1)),
    Page(("TTT..", ".....", "tt.ii", "tt.ii"), 13, 27, "#fde7cf", "#d0741a", 1, (2, 3)),
)
DOCUMENTS = ((0, 1), (2,))  # pages of document A, of document B


def draw_patch(ax: Axes, page: Page, row: int, col: int) -> None:
    """One patch with a hint of its content, or a dashed outline where nothing is."""
    x, y = page.corner(row, col)
    kind, size = page.rows[row][col], PATCH - 0.36
    if kind == ".":
        ax.add_patch(
            Rectangle((x, y), size, size, facecolor="#f6f7f8", edgecolor=FAINT, linestyle=(0, (2, 2)), linewidth=0.9)
        )
        return
    marked = (row, col) == page.marked
    ax.add_patch(
        Rectangle((x, y), size, size, facecolor=page.color, edgecolor=page.dark, linewidth=2.4 if marked else 0.8)
    )
    if kind == "i":
        ax.fill(
            [x + 0.4, x + 1.7, x + 2.5, x + 3.1, x + 3.9],
            [y + 0.5, y + 2.7, y + 1.5, y + 2.2, y + 0.5],
            color=page.dark,
            alpha=0.55,
        )
        ax.add_patch(Circle((x + 3.1, y + 3.3), 0.45, color=page.dark, alpha=0.55))
    else:
        heights, width = ((2.0,), 4.4) if kind == "T" else ((3.3, 2.3, 1.3), 1.7)
        for height in heights:
            ax.plot(
                [x + 0.6, x + 3.6],
                [y + height, y + height],
                color=page.dark,
                alpha=0.75,
                linewidth=width,
                solid_capstyle="butt",
            )


def draw_page(ax: Axes, page: Page) -> None:
    height, width = len(page.rows) * PATCH, len(page.rows[0]) * PATCH
    ax.add_patch(
        FancyBboxPatch(
            (page.left - 0.45, page.top - height - 0.1),
            width + 0.5,
            height + 0.2,
            facecolor="white",
            edgecolor=SOFT,
            linewidth=1.1,
            boxstyle="round,pad=0.25,rounding_size=0.5",
        )
    )
    for row in range(len(page.rows)):
        for col in range(len(page.rows[0])):
            draw_patch(ax, page, row, col)
    for col in range(len(page.rows[0])):
        ax.text(page.left + (col + 0.46) * PATCH, page.top + 0.9, f"{col + 1}", ha="center", fontsize=11, color=SOFT)
    for row in range(len(page.rows)):
        ax.text(page.left - 1.9, page.top - (row + 0.62) * PATCH, f"{row + 1}", ha="center", fontsize=11, color=SOFT)
    middle = page.left + width / 2
    ax.text(
        middle, page.top - height - 2.7, f"page {page.index}", ha="center", fontsize=13, color=page.dark, weight="bold"
    )


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, width: float = 1.8) -> None:
    """An arrow that leaves and arrives level, or straight where one end is above the other."""
    bend = (end[0] - start[0]) * 0.55
    points = [start, (start[0] + bend, start[1]), (end[0] - bend, end[1]), end]
    path = PathShape(points, [PathShape.MOVETO, *[PathShape.CURVE4] * 3]) if bend else PathShape([start, end])
    ax.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=16, color=color, linewidth=width))


def bracket(ax: Axes, left: float, right: float, y: float, label: str, color: str) -> None:
    ax.plot([left, left, right, right], [y + 1, y, y, y + 1], color=color, linewidth=1.6)
    ax.text((left + right) / 2, y - 2.6, label, ha="center", fontsize=13, color=color, weight="bold")


def draw_sequence(ax: Axes, left: float, y: float) -> float:
    """All tokens in one row, their boundaries below; returns the right end."""
    x, starts = left, []
    for page in PAGES:
        starts.append(x)
        ax.add_patch(Rectangle((x, y), TOKEN - 0.22, 3.2, facecolor=page.dark, edgecolor=page.dark, linewidth=1))
        x += TOKEN
        for cell in page.kept:
            marked = cell == page.marked
            ax.add_patch(
                Rectangle(
                    (x, y),
                    TOKEN - 0.22,
                    3.2,
                    facecolor=page.color,
                    edgecolor=page.dark,
                    linewidth=2.4 if marked else 0.8,
                )
            )
            if marked:
                address = f"({page.index}, {cell[0] + 1}, {cell[1] + 1})"
                ax.plot([x + 0.75, x + 0.75], [y + 3.4, y + 5.4], color=page.dark, linewidth=1.4)
                ax.text(x + 0.75, y + 6, address, ha="center", fontsize=13.5, color=page.dark, weight="bold")
            x += TOKEN
    ends = [*starts[1:], x]
    for page, start, end in zip(PAGES, starts, ends, strict=True):
        bracket(ax, start, end - 0.5, y - 2.6, f"page {page.index}", page.dark)
    for name, members in zip("AB", DOCUMENTS, strict=True):
        bracket(ax, starts[members[0]], ends[members[-1]] - 0.5, y - 8.6, f"document {name}", INK)
    return x


def draw_mask(ax: Axes, x: float, y: float, groups: tuple[tuple[int, ...], ...]) -> None:
    """Who sees whom: a square of attention for each group of pages."""
    size, offset = 6.6, 0.0
    ax.add_patch(Rectangle((x, y), size, size, facecolor="white", edgecolor=SOFT, linewidth=1))
    total = sum(len(page.kept) + 1 for page in PAGES)
    for group in groups:
        side = size * sum(len(PAGES[i].kept) + 1 for i in group) / total
        color = PAGES[group[0]].dark if len(group) == 1 else "#28808f"
        ax.add_patch(
            Rectangle((x + offset, y + size - offset - side), side, side, facecolor=color, alpha=0.75, linewidth=0)
        )
        offset += side


def draw_block(ax: Axes, x: float, y: float, scope: str) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (x, y),
            33,
            8.6,
            facecolor="#eef2f6" if scope == "page" else "#dff0f1",
            edgecolor=SOFT,
            linewidth=1.1,
            boxstyle="round,pad=0,rounding_size=1.2",
        )
    )
    ax.text(x + 2, y + 5.1, "block", fontsize=14, color=INK, weight="bold")
    ax.text(x + 2, y + 1.9, f"scope: {scope}", fontsize=13, color=INK)
    draw_mask(ax, x + 25, y + 1, ((0,), (1,), (2,)) if scope == "page" else DOCUMENTS)


def draw_labels(ax: Axes, x: float, y: float) -> None:
    """The class tokens of each document's pages, pooled, and the label."""
    for row, (members, label) in enumerate(zip(DOCUMENTS, ("paper", "slides"), strict=True)):
        level = y - 8.2 * row
        for i, member in enumerate(members):
            ax.add_patch(
                Rectangle(
                    (x + 2.6 * i + (1.3 if len(members) == 1 else 0), level), 1.7, 3.4, facecolor=PAGES[member].dark
                )
            )
        arrow(ax, (x + 6, level + 1.7), (x + 17.4, level + 1.7))
        ax.text(x + 11.2, level + 2.6, "pool", ha="center", fontsize=12.5, color=SOFT)
        ax.add_patch(
            FancyBboxPatch(
                (x + 18, level - 0.7), 15, 4.8, facecolor=INK, linewidth=0, boxstyle="round,pad=0,rounding_size=1.2"
            )
        )
        ax.text(x + 25.5, level + 0.75, label, ha="center", fontsize=15, color="white", weight="bold")


def draw(path: Path) -> None:
    """Write the picture."""
    figure = plt.figure(figsize=(16, 7.4), dpi=100, facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 160), ylim=(0.8, 74.8))
    ax.axis("off")
    headings = (
        (25, "Pages, cut in patches", "any number, any size"),
        (82, "One packed sequence", "no padding; blank patches are left out"),
        (140.5, "One transformer", "a block sees a page or a document"),
    )
    for x, title, note in headings:
        ax.text(x, 71.4, title, ha="center", fontsize=18, color=INK, weight="bold")
        ax.text(x, 68, note, ha="center", fontsize=13.5, color=SOFT)
    for page in PAGES:
        draw_page(ax, page)
    for x, y, name in ((24.5, 34, "A"), (24.5, 2.8, "B")):
        ax.text(x, y, f"document {name}", ha="center", fontsize=13, color=INK, weight="bold")
    left, level = 50.5, 37.5
    right = draw_sequence(ax, left, level)
    middle = (left + right) / 2
    ax.text(middle, 57, "token = patch + position (row, column) + page index", ha="center", fontsize=15.5, color=INK)
    ax.text(
        middle, 52, "every token carries its own address: (page, row, column)", ha="center", fontsize=13.5, color=SOFT
    )
    ax.add_patch(Rectangle((left + 13, 15.4), TOKEN - 0.22, 3.2, facecolor=INK))
    ax.text(left + 17, 16.1, "class token, one for each page", fontsize=13, color=INK)
    ax.add_patch(Rectangle((left + 12.1, 9.4), 3.2, 3.2, facecolor="#f6f7f8", edgecolor=FAINT, linestyle=(0, (2, 2))))
    ax.text(left + 17, 10.1, "blank patch: no token", fontsize=13, color=INK)
    arrow(ax, (45.8, 50), (left - 0.3, level + 2.4), SOFT)
    arrow(ax, (37, 18), (left - 0.3, level + 0.8), SOFT)
    arrow(ax, (right + 0.4, level + 1.6), (123.6, 58.3), SOFT)
    for i, scope in enumerate(("page", "page", "document")):
        draw_block(ax, 124, 54 - 11 * i, scope)
        arrow(ax, (140.5, 54 - 11 * i), (140.5, 54 - 11 * i - 2.2), SOFT, 1.4)
    ax.text(140.5, 26.2, "class tokens of each document", ha="center", fontsize=13, color=SOFT)
    draw_labels(ax, 124, 18.5)
    figure.savefig(path, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
