"""The report on the CIFAR-10 benchmarks: its cells name what is trained, and its verdicts follow from the runs."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from docvit.training.loop import fit
from kd.cifar10.presets import PRESETS
from kd.cifar10.report import _failure, difference, verdict
from kd.cifar10.tables import FIGURES, TABLES, Cell, Claim, Table


def test_every_cell_and_line_names_a_network_that_is_trained():
    for name, preset in PRESETS.items():
        networks = {(stage.name, network) for stage in preset.stages for network in stage.networks}
        cells = [cell for table in TABLES[name] for cell in table.cells]
        lines = [line for lines in FIGURES[name].values() for line in lines]
        assert {(line.stage, line.network) for line in cells + lines} <= networks
        assert all(cell.epoch <= preset.stage(cell.stage).train.epochs for cell in cells) or name == "smoke"
        assert preset.teacher_epoch <= preset.stage("teacher").train.epochs


def test_the_report_preset_is_the_reports():
    preset = PRESETS["report"]
    assert (preset.teacher_width, preset.student_width, preset.init, preset.augment) == (1.0, 1.0, "default", None)
    assert [cell.reported for table in TABLES["report"][:3] for cell in table.cells] == [
        57.9, 70.77, 65.8, 65.4, 65.8, 68.8, 10.5, 10.5, 10.5, 68.5,
    ]  # fmt: skip
    assert [config.alpha for config in preset.stage("students").networks.values()] == [0.5, 0.6, 0.8]


def test_the_failing_stage_is_plain_sgd_and_changes_nothing_else():
    """Its steps are minus learning rate times gradient, which Adam's and Nesterov's are not."""
    baseline, failure = (PRESETS["report"].stage(name) for name in ("baseline", "failure"))
    assert replace(failure, name="baseline", train=baseline.train) == baseline
    optimizer = {"optimizer": failure.train.optimizer, "momentum": failure.train.momentum}
    assert replace(baseline.train, **optimizer) == failure.train
    model, inputs = torch.nn.Linear(3, 2), torch.randn(5, 3)
    expected = copy.deepcopy(model)
    for _ in range(2):
        gradients = torch.autograd.grad(expected(inputs).square().mean(), list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.001 * gradient

    class Batches(list):
        def set_epoch(self, epoch, skip=0):
            pass

    loss = lambda network, batch, _: {"loss": network(batch).square().mean()}  # noqa: E731
    fit(model, Batches([inputs]), loss, replace(failure.train, epochs=2, bf16=False))
    torch.testing.assert_close(model.weight, expected.weight, rtol=0, atol=1e-7)


def test_claims_point_the_way_the_report_does():
    """Where the report has numbers for both rows of a claim, the better one is better there too."""
    for table in TABLES["report"]:
        for claim in table.claims:
            better, worse = table.cells[claim.better], table.cells[claim.worse]
            if better.reported is not None and worse.reported is not None and table.name != "baseline":
                assert better.reported > worse.reported, (table.name, claim)
    named = {
        (table.cells[claim.better].label, table.cells[claim.worse].label)
        for tables in TABLES.values()
        for table in tables
        for claim in table.claims
    }
    curves = ("test loss", "test loss above training loss")
    assert named == {
        ("10 epochs", "6 epochs"),
        ("10 epochs", "15 epochs"),
        ("alpha 0.8", "alpha 0.5"),
        ("alpha 0.8", "alpha 0.6"),
        ("with (alpha 0.8)", "without, same settings"),
        ("student with EMA", "teacher without EMA"),
        ("teacher with EMA", "teacher without EMA"),
        ("average of the small network, distilled", "student without EMA (the small network, distilled)"),
        *((f"{what}, with EMA: {who}", f"{what}, without EMA") for what in curves for who in ("student", "teacher")),
        ("Adam at 0.001", "SGD at 0.001"),
        ("student, distilled", "student alone"),
        ("teacher, average", "teacher"),
        ("student, distilled, average", "student, distilled"),
        ("distilled, patient", "distilled, short"),
        ("alone, patient", "alone, short"),
    }


def two_rows(reported=(None, None), metric="test_accuracy"):
    cells = (Cell("a", "s", reported=reported[0], metric=metric), Cell("b", "s", reported=reported[1], metric=metric))
    return Table("t", "T", cells, (Claim(0, 1),))


def test_a_difference_is_paired_by_seed():
    mean, half = difference({0: 70.0, 1: 72.0, 2: 71.0, 9: 0.0}, {0: 69.0, 1: 70.0, 2: 69.5})
    assert mean == pytest.approx(1.5)
    assert half == pytest.approx(4.302653 * 0.5 / math.sqrt(3), rel=1e-5)  # t of 2 degrees of freedom
    assert difference({0: 1.0}, {1: 1.0}) is None
    assert difference({0: 2.0}, {0: 1.0}) == (1.0, None)


@pytest.mark.parametrize(
    ("better", "worse", "reported", "metric", "word"),
    [
        ((70.0, 71.0, 72.1), (68.0, 69.0, 70.0), (None, None), "test_accuracy", "Holds"),
        ((70.0, 71.0, 72.1), (68.0, 69.0, 70.0), (68.5, 10.5), "test_accuracy", "Holds in direction, not in size"),
        ((68.0, 69.0, 70.0), (70.0, 71.0, 72.1), (None, None), "test_accuracy", "Does not hold"),
        ((68.0, 72.0, 70.0), (70.0, 71.0, 69.0), (None, None), "test_accuracy", "Cannot tell"),
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.3), (None, None), "test_loss", "Holds"),
        ((70.0,), (60.0,), (None, None), "test_accuracy", "Cannot tell"),
        ((), (60.0,), (None, None), "test_accuracy", "Cannot tell"),
    ],
)
def test_verdicts(better, worse, reported, metric, word):
    samples = [dict(enumerate(better)), dict(enumerate(worse))]
    assert verdict(two_rows(reported, metric), samples).startswith(f"**{word}**")
    assert verdict(two_rows(reported, metric), samples, conclusive=False).startswith("**Cannot tell**")


def test_optimisers_are_not_held_against_the_report():
    """It has no figure for Adam alone."""
    table = next(table for table in TABLES["report"] if table.name == "baseline")
    text = verdict(table, [{0: 50.0, 1: 51.0, 2: 50.5}, {0: 10.0, 1: 10.5, 2: 10.2}])
    assert text.startswith("**Holds**: Adam at 0.001 over SGD at 0.001: +40.3")
    assert "the report" not in text


def test_a_cell_reads_its_epoch_and_failures_are_counted_row_by_row():
    table = next(table for table in TABLES["report"] if table.name == "distillation")
    curves = [[0.1, 0.1, 0.11, 0.2], [0.1, 0.1, 0.13, 0.118]]
    weights = [[{"test_accuracy": x} for x in curve] for curve in curves]
    runs = {seed: {"networks": {"alone": {"weights": curve}}} for seed, curve in enumerate(weights)}
    last, third = (
        Cell("l", "failure", epoch=epoch).sample(SimpleNamespace(of_stage=lambda stage: runs)) for epoch in (0, 3)
    )
    assert (last, third) == ({0: 20.0, 1: pytest.approx(11.8)}, {0: 11.0, 1: 13.0})
    text = _failure(table, [{}, last, third, {}])
    assert text.endswith("1 of 2 runs (without, SGD at 0.001), 1 of 2 runs (without, SGD at 0.001, 3 epochs).")
