"""Labelled documents: folders with a class each, and CSVs."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from docvit.documents.pages import SUFFIXES, find_documents
from docvit.errors import UserError

MAX_LISTED = 20


class DataError(UserError):
    """Training data that cannot be used; `problems` lists all of them, not just the first.

    `found` are the documents that are there, whatever is wrong with others.
    """

    def __init__(self, data: str | os.PathLike[str], problems: Sequence[str], *, found: Sequence[str] = ()) -> None:
        self.data, self.problems, self.found = data, list(problems), tuple(found)
        more = [f"... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        super().__init__("\n  ".join([f"{os.fspath(data)} cannot be used:", *self.problems[:MAX_LISTED], *more]))


@dataclass(frozen=True)
class LabelledDocuments:
    """Paths with their labels (indices into `classes`), and optionally the group (such as the source) of each."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, indices: Sequence[int]) -> LabelledDocuments:
        paths, labels = tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices)
        groups = tuple(self.groups[i] for i in indices) if self.groups is not None else None
        return LabelledDocuments(paths, labels, self.classes, groups)


def read_labelled(
    data: str | os.PathLike[str], *, classes: Sequence[str] | None = None, group_column: str | None = None
) -> LabelledDocuments:
    """Reads a folder with one sub folder a class, or a CSV with the columns `path` and `label`.

    Paths in a CSV are relative to the CSV. `group_column` names a further column, for leaving whole groups out.

    Raises:
        DataError: with every problem found: missing columns, missing files, files listed twice, classes without
            documents, labels that are not among `classes`.
    """
    path = Path(data)
    if path.is_dir():
        if group_column:
            raise DataError(data, [f"groups ({group_column!r}) need a CSV, and this is a folder"])
        rows, problems = _read_folder(path)
    elif path.is_file():
        rows, problems = _read_csv(path, group_column)
    else:
        raise DataError(data, ["there is no such file or folder"])
    names = tuple(classes) if classes else tuple(sorted({label for _, label, _ in rows}))
    unknown = sorted({label for _, label, _ in rows} - set(names))
    if unknown:
        problems.append(f"labels that the model does not know: {', '.join(unknown)} (it knows {', '.join(names)})")
    if not rows and not problems:
        problems.append("no documents: give a folder with one sub folder a class, or a CSV with path,label")
    if problems:
        raise DataError(data, problems, found=[p for p, _, _ in rows])
    groups = tuple(group for _, _, group in rows) if group_column else None
    return LabelledDocuments(
        tuple(p for p, _, _ in rows), tuple(names.index(label) for _, label, _ in rows), names, groups
    )


Row = tuple[str, str, str]  # path, label, group


def _read_folder(path: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    problems = []
    for folder in sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")):
        # a class folder full of scans is many one-page documents, never one
        found = sorted(p for p in find_documents([folder]) if p != str(folder)) or sorted(
            str(p) for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        rows += [(p, folder.name, "") for p in found]
        if not found:
            problems.append(f"class folder without documents: {folder.name}")
    return rows, problems


def _read_csv(path: Path, group_column: str | None) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    lines: dict[str, int] = {}  # where each path stands first
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            wanted = ["path", "label"] + ([group_column] if group_column else [])
            missing = [name for name in wanted if name not in (reader.fieldnames or [])]
            if missing:
                return [], [f"missing column: {name} (found: {', '.join(reader.fieldnames or [])})" for name in missing]
            problems = []
            for row in reader:
                line, location, label = reader.line_num, row["path"] or "", row["label"] or ""
                resolved = os.path.normpath(path.parent / location)
                if not location or not label:
                    problems.append(f"line {line}: empty path or label")
                elif not os.path.exists(resolved):
                    problems.append(f"line {line}: no such file: {location} (paths are relative to the CSV)")
                elif lines.setdefault(resolved, line) != line:
                    problems.append(f"line {line}: {location} stands on line {lines[resolved]} already")
                elif group_column and not row[group_column]:
                    problems.append(f"line {line}: empty {group_column}")  # one large group of strangers otherwise
                else:
                    rows.append((resolved, label, row[group_column] if group_column else ""))
            return rows, problems
    except (UnicodeDecodeError, csv.Error) as error:
        return [], [f"not a CSV: {error}"]


def split_groups(data: LabelledDocuments, fold: int, folds: int) -> tuple[LabelledDocuments, LabelledDocuments]:
    """(training, held out) with whole groups held out: fold `fold` of `folds`, stratified by class.

    Raises:
        DataError: the data has no groups, or fewer than `folds`.
    """
    if data.groups is None or len(set(data.groups)) < folds:
        raise DataError("the data", [f"{folds} folds need as many groups: name the CSV's column with --group-by"])
    from sklearn.model_selection import StratifiedGroupKFold  # here, since few commands need to wait for it

    splits = list(StratifiedGroupKFold(folds).split(np.zeros(len(data)), data.labels, data.groups))
    train, held_out = splits[fold]
    return data.subset(train.tolist()), data.subset(held_out.tolist())
