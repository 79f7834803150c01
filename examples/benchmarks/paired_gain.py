"""How much better one output of leave_source_out.py is than another, document by document, and how sure that is.

    python examples/benchmarks/paired_gain.py DOCUMENTS.csv runs/taught runs/alone

Both must be of the same documents and folds. What a model is right on, and its log loss, are averaged over seeds; the
gain is the mean difference over documents. Its interval is a bootstrap over sources: documents of one source are alike,
so that sources and not documents are what there could have been others of. It says nothing of what was chosen while
looking at these folds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from leave_source_out import PREDICTIONS, SETTINGS

from docvit.data import read_labelled
from docvit.recipes import split_groups
from kd.results import differences

RESAMPLES = 10_000


def judged(runs: Path, folds: int) -> np.ndarray:
    """What the seeds of `runs` make of each document on average (documents, 2): right or not; log loss."""
    seeds = sorted(folder for folder in runs.glob("seed-*") if len(list(folder.glob(f"*/{PREDICTIONS}"))) == folds)
    if not seeds:
        raise SystemExit(f"{runs} has no seed with all of {folds} folds: finish it first")
    tables = []
    for seed in seeds:
        found = [json.loads((seed / f"fold-{fold + 1}" / PREDICTIONS).read_text()) for fold in range(folds)]
        scores = np.concatenate([fold["scores"] for fold in found])
        labels = np.concatenate([fold["labels"] for fold in found])
        of_label = scores[range(len(labels)), labels].clip(1e-9)
        tables.append(np.stack([scores.argmax(1) == labels, -np.log(of_label)], 1))
    return np.mean(tables, axis=0)


def bootstrap(gains: np.ndarray, groups: list[str]) -> dict[str, float]:
    """The mean of `gains` (documents,) and where 95 % of its resamples over groups lie."""
    names, own = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(own, gains), np.bincount(own)
    drawn = np.random.default_rng(0).integers(len(names), size=(RESAMPLES, len(names)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": float(gains.mean()), "low": float(low), "high": float(high)}


def gain(one: np.ndarray, other: np.ndarray, groups: list[str]) -> dict[str, Any]:
    difference = one - other
    right = difference[:, 0]
    return {
        "accuracy": bootstrap(right, groups),
        "log_loss": bootstrap(difference[:, 1], groups),
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
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    settings = [json.loads((runs / SETTINGS).read_text()) for runs in (arguments.runs, *arguments.others)]
    folds = settings[0]["folds"]
    groups = [name for fold in range(folds) for name in split_groups(data, fold, folds)[1].groups or ()]
    one, found = judged(arguments.runs, folds), {}
    for runs, theirs in zip(arguments.others, settings[1:], strict=True):
        alike = [{name: about[name] for name in ("folds", "data")} for about in (settings[0], theirs)]
        if differing := differences(*alike):
            raise SystemExit(f"{runs} cannot be compared: {'; '.join(differing)}")
        found[runs.name] = gain(one, judged(runs, folds), groups)
        told = {name: found[runs.name][name] for name in ("accuracy", "log_loss")}
        between = "  ".join(f"{k} {v['mean']:+.3f} ({v['low']:+.3f} to {v['high']:+.3f})" for k, v in told.items())
        print(f"{arguments.runs.name} against {runs.name}: {between}")
    if arguments.output:
        command = " ".join(["python", "examples/benchmarks/paired_gain.py", "documents.csv", *sys.argv[2:]])
        results = {"of": arguments.runs.name, "against": found, "resamples": RESAMPLES, "command": command}
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
