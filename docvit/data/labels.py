"""Labelled documents: a folder per class, or a CSV."""

from __future__ import annotations

import csv
import logging
import os
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from docvit.data.tables import as_label, read_table, resolve
from docvit.documents.finding import SORT_LOG, find_documents, find_passed_over, is_of_sort, is_output
from docvit.documents.formats import SUFFIXES
from docvit.errors import UserError, in_one_line

logger = logging.getLogger(__name__)

MAX_LISTED = 20


class DataError(UserError):
    """Training data that cannot be used; `problems` lists all of them, not just the first.

    `found` are the documents that are there, whatever is wrong with others.
    """

    def __init__(self, data: str | os.PathLike[str], problems: Sequence[str], *, found: Sequence[str] = ()) -> None:
        self.data, self.problems, self.found = data, list(problems), tuple(found)
        more = [f"... and {len(problems) - MAX_LISTED} more"] if len(problems) > MAX_LISTED else []
        lines = [f"{os.fspath(data)} cannot be used:", *self.problems[:MAX_LISTED], *more]
        super().__init__("\n  ".join(map(in_one_line, lines)))


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

    def only(self, paths: Container[str]) -> LabelledDocuments:
        """Those of these paths."""
        return self.subset([i for i, path in enumerate(self.paths) if path in paths])


def read_labelled(
    data: str | os.PathLike[str], *, classes: Sequence[str] | None = None, group_column: str | None = None
) -> LabelledDocuments:
    """Reads a folder with one sub folder per class, or a CSV with the columns `path` and `label`.

    Paths in a CSV are relative to the CSV. `group_column` names a further column, for leaving whole groups out. Labels
    that look alike (outer blanks, Unicode normalisation) are one. Files in a folder that are no documents, folders that
    a training or `docvit sort` wrote, and what a sort was unsure of are passed over; the log counts and lists them.

    Raises:
        DataError: with every problem found: missing columns, missing files, files listed twice, classes without
            documents, labels that are not among `classes` or look alike, folders for parts instead of
            classes.
    """
    path = Path(data)
    if path.is_dir():
        if group_column:
            raise DataError(data, [f"groups ({group_column!r}) need a CSV, and this is a folder"])
        rows, problems = _read_folder(path)
        _warn_of_passed_over(path)
    elif path.is_file():
        rows, problems = _read_csv(path, group_column)
    else:
        raise DataError(data, ["there is no such file or folder"])
    rows = [(p, as_label(label), group) for p, label, group in rows]
    names = tuple(classes) if classes else tuple(sorted({label for _, label, _ in rows}))
    known = {as_label(name): i for i, name in enumerate(names)}
    unknown = sorted({label for _, label, _ in rows} - known.keys())
    if unknown:
        problems.append(f"labels that the model does not know: {', '.join(unknown)} (it knows {', '.join(names)})")
    problems += _alike(names)
    if not rows and not problems:
        problems.append("no documents: give a folder with one sub folder per class, or a CSV with path,label")
    if problems:
        raise DataError(data, problems, found=[p for p, _, _ in rows])
    groups = tuple(group for _, _, group in rows) if group_column else None
    return LabelledDocuments(tuple(p for p, _, _ in rows), tuple(known[label] for _, label, _ in rows), names, groups)


Row = tuple[str, str, str]  # path, label, group

_PARTS = {
    *("train", "training", "val", "valid", "validation", "dev", "test", "testing"),
    *("eval", "evaluation", "holdout", "hold-out", "hold_out", "heldout", "held-out", "held_out"),
}


def _read_folder(path: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    problems = []
    inside = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    folders = [p for p in inside if not is_output(p) and not is_of_sort(p)]
    if folders and all(folder.name.lower() in _PARTS for folder in folders):
        parts = ", ".join(folder.name for folder in folders)
        return [], [f"its folders are parts of a data set ({parts}), not classes: give one of them, another as --valid"]
    for folder in folders:
        # a class folder full of scans is many one-page documents, never one
        found = sorted(p for p in find_documents([folder]) if p != str(folder)) or sorted(
            str(p) for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        )
        rows += [(p, folder.name, "") for p in found]
        if not found and not any(is_output(p) for p in folder.iterdir() if p.is_dir()):
            problems.append(f"class folder without documents: {folder.name}")
    return rows, problems


def _warn_of_passed_over(path: Path) -> None:
    visible = [p for p in path.iterdir() if not p.name.startswith(".")]
    beside = [str(p) for p in visible if (p.is_file() and p.name != SORT_LOG) or is_of_sort(p)]
    passed_over = sorted({*beside, *find_passed_over([path])})
    if passed_over:
        shown = [os.path.relpath(p, path) for p in passed_over[:MAX_LISTED]]
        more = f", and {len(passed_over) - MAX_LISTED} more" if len(passed_over) > MAX_LISTED else ""
        why = "no documents by their suffix, not in the folder of a class, or written by a training or a sort"
        count = f"{len(passed_over)} file{'' if len(passed_over) == 1 else 's'}"
        logger.warning("%s: %s passed over (%s): %s%s", path, count, why, in_one_line(", ".join(shown)), more)


def _alike(names: Sequence[str]) -> list[str]:
    """A line for each group of labels that differ in case, in the width of letters or in the kind of dash alone."""
    by_fold: dict[str, list[str]] = {}
    for name in names:
        plain = "".join("-" if unicodedata.category(c) == "Pd" else c for c in unicodedata.normalize("NFKC", name))
        by_fold.setdefault(plain.casefold(), []).append(name)
    return [f"labels that look alike: {', '.join(group)}" for group in by_fold.values() if len(group) > 1]


def _read_csv(path: Path, group_column: str | None) -> tuple[list[Row], list[str]]:
    columns = ("path", "label", *([group_column] if group_column else []))
    try:
        table = read_table(path, columns)
    except KeyError as error:
        return [], list(error.args)
    except (UnicodeError, csv.Error) as error:
        return [], [f"not a CSV: {error}"]
    rows: list[Row] = []
    problems = []
    lines: dict[str, int] = {}  # where each path stands first
    for line, row in table:
        location, label = row["path"], row["label"]
        resolved = resolve(path.parent, location)
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


def check_copies(
    data: LabelledDocuments, contents: Mapping[str, object], held_out: LabelledDocuments | None = None
) -> None:
    """Looks for one document under two labels, and for documents to train on among those to evaluate on.

    Args:
        contents: path -> something that is the same for copies of one document alone.

    Raises:
        DataError: with every document that stands under two labels. Those to evaluate on are logged.
    """
    first: dict[object, tuple[str, int]] = {}
    problems = []
    for path, label in zip(data.paths, data.labels, strict=True):
        other, its = first.setdefault(contents[path], (path, label))
        if its != label:
            names = data.classes[its], data.classes[label]
            problems.append(f"one document under two labels: {other} ({names[0]}) and {path} ({names[1]})")
    if problems:
        raise DataError("the data", problems)
    both = [path for path in (held_out.paths if held_out else ()) if contents[path] in first]
    if both:
        shown = ", ".join(both[:MAX_LISTED])
        logger.warning("%d documents to evaluate on are among those to train on, too: %s", len(both), shown)


def split_groups(data: LabelledDocuments, fold: int, folds: int) -> tuple[LabelledDocuments, LabelledDocuments]:
    """(training, held out) with whole groups held out: fold `fold` of `folds`, stratified by class.

    Raises:
        DataError: the data has no groups, or fewer than `folds`.
    """
    if data.groups is None or len(set(data.groups)) < folds:
        raise DataError("the data", [f"{folds} folds need as many groups: name the CSV's column with --group-by"])
    from sklearn.model_selection import StratifiedGroupKFold  # here, since few commands need to wait for it

    train, held_out = list(StratifiedGroupKFold(folds).split(np.zeros(len(data)), data.labels, data.groups))[fold]
    return data.subset(train.tolist()), data.subset(held_out.tolist())
