"""Figures of an evaluation against the same ones worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from docvit.data.metrics import area_under_risk_coverage, expected_calibration_error, report

CLASSES = ("a", "b", "c")
# truth, probabilities of a, b, c
ROWS = [
    (0, 0.8, 0.1, 0.1),
    (0, 0.5, 0.3, 0.2),
    (0, 0.2, 0.7, 0.1),
    (1, 0.1, 0.9, 0.0),
    (1, 0.6, 0.4, 0.0),
    (1, 0.3, 0.6, 0.1),
]


def of(rows, classes=CLASSES):
    return report(np.array([row[1:] for row in rows]), [row[0] for row in rows], classes)


def test_by_hand():
    found = of(ROWS)
    assert found.documents == 6
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.confusion == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert found.per_class["a"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert found.per_class["c"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0.0}
    assert found.macro_f1 == pytest.approx(2 / 3)  # over the classes that occur


def test_a_class_that_is_only_predicted_counts():
    found = of([*ROWS, (0, 0.1, 0.1, 0.8)])
    f1 = {"a": 2 * 2 / (2 * 2 + 1 + 2), "b": 2 * 2 / (2 * 2 + 1 + 1), "c": 0.0}  # 2 TP / (2 TP + FP + FN)
    assert {name: values["f1"] for name, values in found.per_class.items()} == pytest.approx(f1)
    assert found.macro_f1 == pytest.approx(sum(f1.values()) / 3)
    assert found.confusion == [[2, 1, 1], [1, 2, 0], [0, 0, 0]]


def by_definition(rows, bins=15):
    """Sum over bins (i / bins, (i + 1) / bins] of share times |accuracy - confidence|."""
    total = 0.0
    for i in range(bins):
        inside = [r for r in rows if i / bins < max(r[1:]) <= (i + 1) / bins]
        if inside:
            hits = [float(np.argmax(r[1:]) == r[0]) for r in inside]
            total += len(inside) / len(rows) * abs(np.mean(hits) - np.mean([max(r[1:]) for r in inside]))
    return total


def test_calibration_error_by_definition():
    random = np.random.default_rng(0)
    rows = [(int(random.integers(3)), *random.dirichlet([0.5] * 3)) for _ in range(500)]
    assert of(rows).ece == pytest.approx(by_definition(rows))
    assert of(ROWS).ece == pytest.approx(by_definition(ROWS))


def test_calibration_of_the_perfectly_sure():
    sure = np.eye(3)[[0, 1, 2, 0]]
    assert expected_calibration_error(sure, np.array([0, 1, 2, 0])) == 0
    assert expected_calibration_error(sure, np.array([1, 2, 0, 1])) == 1


def test_risk_over_coverage_by_hand():
    # most confident first: right, right, wrong, then two of 0.6 (wrong, right) in their order, then right
    assert of(ROWS).aurc == pytest.approx(np.mean([0, 0, 1 / 3, 2 / 4, 2 / 5, 2 / 6]))
    certain = np.array([[0.9, 0.1], [0.6, 0.4]])
    assert area_under_risk_coverage(certain, np.array([0, 1])) < area_under_risk_coverage(certain, np.array([1, 0]))


def test_as_json():
    found = of(ROWS)
    values = json.loads(json.dumps(found.as_dict()))
    assert set(values) == {
        "documents", "accuracy", "macro_f1", "ece", "aurc", "accuracy_of_surest", "classes", "per_class", "confusion",
    }  # fmt: skip
    assert values["classes"] == list(CLASSES)
    assert values["confusion"] == found.confusion


def test_the_surest_documents_come_first():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.55, 0.45]])
    found = report(scores, [0, 1, 0, 1], ("a", "b"))
    assert found.accuracy_of_surest == {"100%": 0.75, "90%": 0.75, "80%": 1.0, "70%": 1.0, "60%": 1.0, "50%": 1.0}
