"""How much better one output of leave_source_out.py is than another, document by document, and how sure that is.

    python examples/benchmarks/paired_gain.py DOCUMENTS.csv runs/small runs/alone

Both must be of these documents and folds. Whether a model is right, and its log loss, are averaged over seeds; the
difference is their mean over documents. Its 95 % interval is a cluster bootstrap over sources, since documents of one
source are alike. It leaves out how seeds differ, and what was chosen while looking at these folds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from leave_source_out import PREDICTIONS, SETTINGS, data_of, log_losses, other_data
from scipy.stats import bootstrap

from docvit.data.labels import read_labelled, split_groups

MEASURES = ("accuracy", "log_loss")  # higher is better, lower is better


def judged(runs: Path, labels: Sequence[Sequence[int]]) -> tuple[np.ndarray, int]:
    """Accuracy and log loss per document, averaged over the finished seeds of `runs` (documents, 2), and their number.

    `labels` fold by fold.
    """
    tables = []
    for seed in sorted(runs.glob("seed-*")):
        files = [seed / f"fold-{fold + 1}" / PREDICTIONS for fold in range(len(labels))]
        if not all(file.exists() for file in files):
            continue
        found = [json.loads(file.read_text()) for file in files]
        if [fold["labels"] for fold in found] != list(map(list, labels)):
            raise SystemExit(f"{seed} was tested on other documents than these folds have")
        scores, truth = (np.concatenate([fold[name] for fold in found]) for name in ("scores", "labels"))
        tables.append(np.stack([scores.argmax(1) == truth, log_losses(scores, truth)], 1))
    if not tables:
        raise SystemExit(f"{runs} has no seed with all of {len(labels)} folds: finish it first")
    return np.mean(tables, axis=0), len(tables)


def interval(differences: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """The mean of `differences` (documents,) and its 95 % interval, groups resampled."""
    _, own = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(own, differences), np.bincount(own)
    drawn = bootstrap(
        (sums, counts),
        lambda total, count, axis: total.sum(axis) / count.sum(axis),
        paired=True,
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(0),
    )
    low, high = map(float, drawn.confidence_interval)
    return {"mean": float(differences.mean()), "low": low, "high": high}


def compare(one: np.ndarray, other: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    right, loss = (one - other).T
    return {
        "accuracy": interval(right, groups),
        "log_loss": interval(loss, groups),
        "documents better": int((right > 0).sum()),
        "documents worse": int((right < 0).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path)
    parser.add_argument("others", type=Path, nargs="+")
    parser.add_argument("--group-by", default="source_repo")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    data, everyone = read_labelled(arguments.data, group_column=arguments.group_by), [arguments.runs, *arguments.others]
    for runs in everyone:
        if not (runs / SETTINGS).exists():
            raise SystemExit(f"{runs} is no output of leave_source_out.py")
    settings = [json.loads((runs / SETTINGS).read_text()) for runs in everyone]
    folds = settings[0]["folds"]
    for runs, about in zip(everyone, settings, strict=True):
        if differing := other_data({"folds": folds, "data": data_of(data)}, about):
            raise SystemExit(f"{runs} cannot be compared: {'; '.join(differing)}")
    held_out = [split_groups(data, fold, folds)[1] for fold in range(folds)]
    groups = [name for part in held_out for name in part.groups or ()]
    (one, seeds), *others = (judged(runs, [part.labels for part in held_out]) for runs in everyone)
    against = {}
    for runs, (other, of_other) in zip(arguments.others, others, strict=True):
        found = against[str(runs)] = {"seeds": of_other, **compare(one, other, groups)}
        shown = [
            f"{k} {v['mean']:+.3f} ({v['low']:+.3f} to {v['high']:+.3f})" for k, v in found.items() if k in MEASURES
        ]
        print(f"{arguments.runs} ({seeds} seeds) against {runs} ({of_other}): {', '.join(shown)}")
    if arguments.output:
        command = " ".join(["python", "examples/benchmarks/paired_gain.py", "documents.csv", *sys.argv[2:]])
        results = {"of": str(arguments.runs), "seeds": seeds, "against": against, "command": command}
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
