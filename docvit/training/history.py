"""The metrics of a run by epoch, as `metrics.csv` and `curves.png`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from docvit.files import replaced

SCALARS = ("epoch", "lr", "seconds")  # not drawn as curves


def write_metrics(history: Sequence[dict[str, float]], folder: Path) -> None:
    """Writes one row per epoch; the file is replaced in one step."""
    names = list(dict.fromkeys(name for record in history for name in record))
    with replaced(folder / "metrics.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in record.items()} for record in history)


def draw_curves(history: Sequence[dict[str, float]], folder: Path) -> None:
    """Draws what changes from epoch to epoch: losses, and everything else beside them."""
    from matplotlib.figure import Figure  # here: it takes a second, and most commands draw nothing
    from matplotlib.ticker import MaxNLocator

    names = dict.fromkeys(name for record in history for name in record if name not in SCALARS)
    losses = [n for n in names if "loss" in n]
    panels = [p for p in (losses, [n for n in names if n not in losses]) if p]
    figure = Figure(figsize=(5.5 * len(panels), 3.8), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in panel:
            points = [(record["epoch"], record[name]) for record in history if name in record]
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker="." if len(points) < 40 else "")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    with replaced(folder / "curves.png") as partial:
        figure.savefig(partial, dpi=120, format="png")
