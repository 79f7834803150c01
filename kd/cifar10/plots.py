"""Curves of a benchmark, fit to print: mean and spread over seeds, training beside test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from docvit.files import replaced
from kd.cifar10.presets import Preset
from kd.cifar10.results import Results
from kd.cifar10.tables import FIGURES, Line

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # Okabe and Ito's, which the colour-blind can tell apart

PANELS = (("loss", "cross-entropy"), ("accuracy", "accuracy (%)"))


def draw_figures(results: Results, preset: Preset) -> dict[str, Path]:
    """Draws every plot of which all lines were run; returns the files by name."""
    drawn = {}
    for name, lines in FIGURES[preset.name].items():
        curves = [list(line.curves(results).values()) for line in lines]
        if all(curves):
            drawn[name] = results.folder / f"curves-{name}.png"
            _draw(lines, curves, drawn[name])
    return drawn


def _draw(lines: Sequence[Line], curves: Sequence[list[list[dict[str, float]]]], file: Path) -> None:
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (part, unit) in zip(figure.subplots(1, 2), PANELS, strict=True):
        for colour, line, of_seeds in zip(COLOURS, lines, curves, strict=False):
            for split, style in (("test", "-"), ("train", "--")):
                values = np.array([[epoch[f"{split}_{part}"] for epoch in epochs] for epochs in of_seeds])  # [S, E]
                label = line.label if split == "test" else None
                _band(axes, values * (100 if part == "accuracy" else 1), colour, style, label)
        axes.set_xlabel("epoch")
        axes.set_ylabel(unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(curves[0][0]) == 1:
            axes.set_xlim(0.5, 1.5)  # a point and no curve: around it there are no whole epochs
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, title="solid test, dashed training", title_fontsize=8)
    with replaced(file) as partial:
        figure.savefig(partial, dpi=200, format="png")


def _band(axes: Axes, values: NDArray[np.float64], colour: str, style: str, label: str | None) -> None:
    epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(0)
    marker, filled = ("o" if len(epochs) == 1 else ""), ("full" if style == "-" else "none")
    axes.plot(epochs, mean, style, color=colour, label=label, linewidth=1.5, marker=marker, fillstyle=filled)
    if len(values) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
