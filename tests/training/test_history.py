"""The history of a run, as a table."""

from __future__ import annotations

from docvit.training.history import write_metrics


def test_a_history_whose_numbers_come_and_go(tmp_path):
    write_metrics([{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0, "loss": 1.0, "late": 0.5}], tmp_path)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["epoch,loss,late", "1,2,", "2,1,0.5"]
