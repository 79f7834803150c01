"""The report's tables, cell by cell: which run answers each, what the report says, and what it claims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from kd.cifar10.results import Results

Metric = Literal["test_accuracy", "test_loss", "gap"]

Sample = dict[int, float]
"""A value by seed."""


@dataclass(frozen=True)
class Line:
    """A curve of a plot: one network over its epochs.

    Attributes:
        stage, network: see `kd.cifar10.presets.Stage`.
        kind: the network's own weights, or their moving average.
    """

    label: str
    stage: str
    network: str = "alone"
    kind: Literal["weights", "average"] = "weights"

    def curves(self, results: Results) -> dict[int, list[dict[str, float]]]:
        """Of every finished run by seed: one record per epoch."""
        runs = results.of_stage(self.stage).items()
        return {seed: run["networks"][self.network][self.kind] for seed, run in runs}


@dataclass(frozen=True)
class Cell(Line):
    """A row of a table: one measurement of one network.

    Attributes:
        epoch: after how many; 0 is the last.
        reported: the report's value, in percent for accuracies; None where it has none.
        metric: accuracy, loss, or the gap by which the test loss is above the training loss.
    """

    epoch: int = 0
    reported: float | None = None
    metric: Metric = "test_accuracy"

    def sample(self, results: Results) -> Sample:
        """The value in every finished run; accuracies in percent."""
        curves = self.curves(results).items()
        return {seed: self._read(curve[min(self.epoch or len(curve), len(curve)) - 1]) for seed, curve in curves}

    def _read(self, record: Mapping[str, float]) -> float:
        if self.metric == "gap":
            return record["test_loss"] - record["train_loss"]
        return record[self.metric] * (100 if self.metric == "test_accuracy" else 1)


@dataclass(frozen=True)
class Claim:
    """That one row is better than another: higher in accuracy, lower in loss and gap; rows are counted from 0."""

    better: int
    worse: int
    remark: str = ""


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]
    note: str = ""

    @property
    def stages(self) -> set[str]:
        return {cell.stage for cell in self.cells}


def _losses(metric: Metric, what: str) -> tuple[Cell, ...]:
    return (
        Cell(f"{what}, without EMA", "teacher", epoch=10, metric=metric),
        Cell(f"{what}, with EMA: student", "mean-teacher", "distilled", metric=metric),
        Cell(f"{what}, with EMA: teacher", "mean-teacher", "distilled", "average", metric=metric),
    )


_REPORT = (
    Table(
        "teacher",
        "Teacher, by epochs",
        (
            Cell("6 epochs", "teacher", epoch=6, reported=57.9),
            Cell("10 epochs", "teacher", epoch=10, reported=70.77),
            Cell("15 epochs", "teacher", epoch=15, reported=65.8),
        ),
        (Claim(1, 0), Claim(1, 2)),
        "The learning rate is constant, so the three rows are one run at three moments.",
    ),
    Table(
        "alpha",
        "Student, by alpha",
        (
            Cell("alpha 0.5", "students", "alpha 0.5", reported=65.4),
            Cell("alpha 0.6", "students", "alpha 0.6", reported=65.8),
            Cell("alpha 0.8", "students", "alpha 0.8", reported=68.8),
        ),
        (Claim(2, 0), Claim(2, 1)),
        "alpha weighs the soft targets, 1 - alpha the labels.",
    ),
    Table(
        "distillation",
        "Student without and with a teacher",
        (
            Cell("without, same settings", "baseline", reported=10.5),
            Cell("without, SGD at 0.001", "failure", reported=10.5),
            Cell("without, SGD at 0.001, 3 epochs", "failure", epoch=3, reported=10.5),
            Cell("with (alpha 0.8)", "students", "alpha 0.8", reported=68.5),
        ),
        (Claim(3, 0),),
        "The first row is the honest baseline: the same network, start, optimiser, batches and epochs. The second row "
        "changes the optimiser alone, the third looks at the same run earlier. Ten classes put chance at 10 %.",
    ),
    Table(
        "ema",
        "EMA: student and teacher of one architecture",
        (
            Cell("student with EMA", "mean-teacher", "distilled", reported=72.65),
            Cell("student without EMA (the small network, distilled)", "students", "alpha 0.8", reported=68.5),
            Cell("teacher with EMA", "mean-teacher", "distilled", "average", reported=74.60),
            Cell("teacher without EMA", "teacher", epoch=10, reported=70.77),
            Cell("average of the teacher trained alone", "teacher", kind="average", epoch=10),
            Cell("average of the small network, distilled", "students", "alpha 0.8", "average"),
        ),
        (Claim(0, 3, "like with like: the same network without a teacher of its own"), Claim(2, 3), Claim(5, 1)),
        "The report's student with EMA is the large network, its student without EMA the small one; that difference "
        "is no effect of EMA and is not judged.",
    ),
    Table(
        "curves",
        "Curves: does EMA lower the test loss and the overfitting?",
        _losses("test_loss", "test loss") + _losses("gap", "test loss above training loss"),
        (Claim(1, 0), Claim(2, 0), Claim(4, 3), Claim(5, 3)),
        "After the same number of epochs of the same network. The report shows curves and gives no numbers.",
    ),
    Table(
        "baseline",
        "Student without a teacher, by optimiser",
        (
            Cell("Adam at 0.001", "baseline"),
            Cell("SGD at 0.001", "failure", reported=10.5),
        ),
        (Claim(0, 1),),
        "The first two rows of `distillation`, which need no teacher and so can be measured by themselves. The "
        "report has one number for a student without a teacher, and compares no optimisers.",
    ),
)

_MODERN = (
    Table(
        "networks",
        "The same networks, trained as one would today",
        (
            Cell("teacher", "teacher"),
            Cell("teacher, average", "teacher", kind="average"),
            Cell("student alone", "patient"),
            Cell("student alone, average", "patient", kind="average"),
            Cell("student, distilled", "patient", "distilled"),
            Cell("student, distilled, average", "patient", "distilled", "average"),
        ),
        (Claim(4, 2), Claim(1, 0), Claim(5, 4)),
    ),
    Table(
        "patience",
        "Does patience pay?",
        (
            Cell("alone, short", "short"),
            Cell("alone, patient", "patient"),
            Cell("distilled, short", "short", "distilled"),
            Cell("distilled, patient", "patient", "distilled"),
        ),
        (Claim(3, 2), Claim(1, 0)),
        "The claim is that of arXiv 2106.05237: a student that sees the teacher's view goes on gaining.",
    ),
)

TABLES: Mapping[str, tuple[Table, ...]] = {"report": _REPORT, "smoke": _REPORT, "modern": _MODERN}

_REPORT_FIGURES = {
    "ema": (
        Line("without EMA", "teacher"),
        Line("with EMA: student", "mean-teacher", "distilled"),
        Line("with EMA: teacher", "mean-teacher", "distilled", "average"),
    ),
    "students": (
        Line("alone", "baseline"),
        Line("distilled", "students", "alpha 0.8"),
        Line("distilled, average", "students", "alpha 0.8", "average"),
    ),
    "failure": (Line("Adam", "baseline"), Line("SGD at 0.001", "failure")),
}

FIGURES: Mapping[str, Mapping[str, tuple[Line, ...]]] = {
    "report": _REPORT_FIGURES,
    "smoke": _REPORT_FIGURES,
    "modern": {
        "networks": (
            Line("teacher", "teacher"),
            Line("student alone", "patient"),
            Line("student, distilled", "patient", "distilled"),
        ),
        "averages": (
            Line("teacher, average", "teacher", "alone", "average"),
            Line("student alone, average", "patient", "alone", "average"),
            Line("student, distilled, average", "patient", "distilled", "average"),
        ),
    },
}
