"""What benchmarks share that judge the models of `docvit train --fold K/5`, each on the documents left out for it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from docvit.data.labels import LabelledDocuments, read_labelled, split_groups

FOLDS = 5


def parser_of(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="CSV with path, label and group")
    parser.add_argument("--models", type=Path, required=True, help="folder with the folds' models, fold-1 to fold-5")
    parser.add_argument("--group-by", default="group")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser


def folds_of(args: argparse.Namespace) -> Iterator[tuple[int, Path, LabelledDocuments, LabelledDocuments]]:
    """Of each fold that has a model: its number, the model, and the documents that it was trained on and without."""
    if not any((args.models / f"fold-{fold}").is_dir() for fold in range(1, FOLDS + 1)):
        raise SystemExit(f"{args.models} has no folder fold-1 to fold-{FOLDS}: train them as said above (--help)")
    data = read_labelled(args.data, group_column=args.group_by)
    for fold in range(1, FOLDS + 1):
        if (args.models / f"fold-{fold}").is_dir():
            yield fold, args.models / f"fold-{fold}", *split_groups(data, fold - 1, FOLDS)
