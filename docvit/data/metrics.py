"""Classification metrics: accuracy, macro-F1, calibration, precision and recall per class, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARES = (100, 90, 80, 70, 60, 50)


@dataclass(frozen=True)
class Report:
    """Metrics of one evaluation.

    Attributes:
        accuracy, macro_f1: in 0..1.
        ece: expected calibration error, 15 equal bins of confidence (arXiv 1706.04599).
        aurc: area under the risk-coverage curve (Geifman et al., arXiv 1805.08206); lower is better.
        accuracy_of_surest: accuracy of the surest 100, 90, ... 50 % of the documents.
        per_class: class -> precision, recall, f1, support.
        confusion: (C, C) number of documents; rows are true classes, columns predicted ones.
    """

    documents: int
    accuracy: float
    macro_f1: float
    ece: float
    aurc: float
    accuracy_of_surest: dict[str, float]
    classes: tuple[str, ...]
    per_class: dict[str, dict[str, float]]
    confusion: list[list[int]]

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "classes": list(self.classes)}


def report(probabilities: np.ndarray, labels: Sequence[int], classes: Sequence[str]) -> Report:
    """Metrics of probabilities (documents, C) and true labels (documents,)."""
    # imported here: classifying does not need scikit-learn
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    truth, predicted = np.asarray(labels), probabilities.argmax(1)
    every = list(range(len(classes)))
    # macro-F1 over the classes that occur: a fold without documents of a class does not score 0 for it
    present = sorted(set(truth.tolist()) | set(predicted.tolist()))
    columns = precision_recall_fscore_support(truth, predicted, labels=every, zero_division=0.0)
    names = ("precision", "recall", "f1", "support")
    return Report(
        documents=len(truth),
        accuracy=float(accuracy_score(truth, predicted)),
        macro_f1=float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0.0)),
        ece=expected_calibration_error(probabilities, truth),
        aurc=area_under_risk_coverage(probabilities, truth),
        accuracy_of_surest={f"{share}%": accuracy_at(probabilities, truth, share / 100) for share in SHARES},
        classes=tuple(classes),
        per_class={
            c: {n: float(column[i]) for n, column in zip(names, columns, strict=True)} for i, c in enumerate(classes)
        },
        confusion=confusion_matrix(truth, predicted, labels=every).tolist(),
    )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Mean distance between confidence and accuracy over equal bins of confidence, weighted by their size."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [abs(confidence[bin_of == b].sum() - correct[bin_of == b].sum()) for b in range(bins)]
    return float(np.sum(gaps) / len(labels))


def area_under_risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean error rate over all coverages, most confident documents first."""
    order = np.argsort(-probabilities.max(1), kind="stable")
    wrong = (probabilities.argmax(1) != labels)[order]
    return float((wrong.cumsum() / np.arange(1, len(labels) + 1)).mean())


def accuracy_at(probabilities: np.ndarray, labels: np.ndarray, share: float) -> float:
    """Accuracy of the given share of the documents, those with the highest confidence."""
    order = np.argsort(-probabilities.max(1), kind="stable")[: max(1, round(share * len(labels)))]
    return float((probabilities.argmax(1) == labels)[order].mean())
