"""Does a model notice documents of kinds that it has never seen? Whole kinds and whole groups are left out.

    python examples/benchmarks/unknown_kinds.py DOCUMENTS.csv RUNS --group-by group --output results/unknown_kinds.json

The kinds are dealt into parts. For each part a model is trained as `docvit train` does it, without the part's kinds
and without fold K of the groups. Its thresholds come from the held-out documents of the kinds that it knows. Then it
judges all held-out documents: AUROC of `known`, and what is unsure. What RUNS holds is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from sklearn.metrics import roc_auc_score

from docvit import DocumentClassifier, Recipe, read_labelled, train_documents
from docvit.data.labels import LabelledDocuments, split_groups
from docvit.training.loop import TrainSettings


def without(data: LabelledDocuments, kinds: set[str]) -> LabelledDocuments:
    """The documents of the other kinds, with classes of those alone."""
    classes = tuple(name for name in data.classes if name not in kinds)
    kept = data.only([p for p, y in zip(data.paths, data.labels, strict=True) if data.classes[y] not in kinds])
    return LabelledDocuments(
        kept.paths, tuple(classes.index(data.classes[y]) for y in kept.labels), classes, kept.groups
    )


def judge(folder: Path, data: LabelledDocuments, kinds: set[str], words: bool) -> dict[str, float]:
    """AUROC of `known`, and how many known and unknown documents, and right answers, are unsure."""
    rows = DocumentClassifier.from_pretrained(folder).predict(data.paths, words=words)
    names = [data.classes[y] for y in data.labels]
    pairs = [(row, name) for row, name in zip(rows, names, strict=True) if row.error is None]
    unknown = [row for row, name in pairs if name in kinds]
    known = [(row, name) for row, name in pairs if name not in kinds]
    right = [row for row, name in known if row.label == name]
    auroc = roc_auc_score([0] * len(unknown) + [1] * len(known), [r.known for r in (*unknown, *(r for r, _ in known))])
    shares = {"unknown": unknown, "right": right, "wrong": [row for row, name in known if row.label != name]}
    return {"auroc": auroc} | {
        f"{name} unsure": statistics.fmean(r.unsure for r in rows) for name, rows in shares.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("runs", type=Path)
    parser.add_argument("--group-by", default="group")
    parser.add_argument("--parts", type=int, default=4, help="parts that the kinds are dealt into (default: 4)")
    parser.add_argument("--folds", type=int, nargs="+", default=[1], help="of 5, counted from 1 (default: 1)")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    data = read_labelled(args.data, group_column=args.group_by)
    rows = []
    for fold in args.folds:
        rest, held_out = split_groups(data, fold - 1, 5)
        for part in range(args.parts):
            kinds, folder = set(data.classes[part :: args.parts]), args.runs / f"fold-{fold}-part-{part + 1}"
            if not (folder / "done").exists():
                recipe = Recipe("docvit_linear_patch32", settings={"words": 16384}, train=TrainSettings(args.epochs))
                resume = (folder / "checkpoint.safetensors").exists()
                train_documents(without(rest, kinds), folder, recipe, valid=without(held_out, kinds), resume=resume)
                (folder / "done").touch()
            for words in (True, False):
                rows.append(
                    {"fold": fold, "left out": sorted(kinds), "words": words} | judge(folder, held_out, kinds, words)
                )
                print(rows[-1], flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
