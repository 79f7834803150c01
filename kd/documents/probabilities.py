"""Teacher probabilities from a CSV: any classifier can teach, whatever it is and wherever it ran."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from docvit.data.labels import DataError
from docvit.data.tables import as_label, read_table, resolve

LEAST = 1e-6  # a probability of 0 has no logarithm

TOLERANCE = 1e-3  # of the sum of probabilities that were rounded


@dataclass(frozen=True)
class TeacherProbabilities:
    """Class probabilities of documents, as one classifier predicted them.

    Attributes:
        file: the CSV.
        rows: probabilities by the real path of the document, in the order of the data's classes.
        digest: SHA-256 of the CSV.
    """

    file: Path
    rows: dict[str, tuple[float, ...]]
    digest: str

    def logits(self, paths: Sequence[str]) -> Tensor:
        """(documents, C) log-probabilities of these documents, those of 0 as if they were 1e-6.

        Raises:
            DataError: documents without a row; it names all of them.
        """
        problems = self.missing(paths)
        if problems:
            raise DataError(self.file, problems)
        return torch.tensor([self.rows[os.path.realpath(path)] for path in paths]).clamp(min=LEAST).log()

    def missing(self, paths: Sequence[str]) -> list[str]:
        """A line for each of these documents that has no row."""
        return [f"no row for {path}" for path in paths if os.path.realpath(path) not in self.rows]


def read_probabilities(
    file: str | os.PathLike[str], classes: Sequence[str], documents: Sequence[str]
) -> TeacherProbabilities:
    """Reads a CSV with the columns `path`, relative to the CSV, and one per class.

    Further documents may have rows, too; further columns are refused, since they may be classes.

    Args:
        classes: those of the data.
        documents: paths that must have a row.

    Raises:
        DataError: with every problem found: missing columns, columns that are no class of the data, documents without
            a row or with two, and probabilities that are no numbers, negative, or do not sum to 1 within 1e-3.
    """
    path = Path(file)
    try:
        table = read_table(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(file, [f"not a CSV that can be read: {error}"]) from error
    header = {as_label(name).casefold(): name for name in (table[0][1] if table else {})}
    names = {name: as_label(name).casefold() for name in ("path", *classes)}
    problems = [f"missing column: {name}" for name, key in names.items() if key not in header] if table else []
    unknown = [name for key, name in header.items() if key not in names.values()]
    if unknown:
        problems.append(f"columns that are no class: {', '.join(unknown)} (the classes are {', '.join(classes)})")
    if "path" not in header and table:
        raise DataError(file, problems)
    rows: dict[str, tuple[float, ...]] = {}
    complete = not problems
    for line, row in table:
        location = row[header["path"]]
        document = os.path.realpath(resolve(path.parent, location))
        values, problem = _parse([row[header[names[name]]] for name in classes]) if complete else ((), "")
        if not location:
            problem = "empty path"
        elif document in rows:
            problem = f"a second row for {location}"
        rows.setdefault(document, values)
        problems += [f"line {line}: {problem}"] if problem else []
    found = TeacherProbabilities(path, rows, digest)
    problems += found.missing(documents)
    if problems:
        raise DataError(file, problems)
    return found


def _parse(cells: Sequence[str]) -> tuple[tuple[float, ...], str]:
    """The probabilities of a row, and what is wrong with them; nothing if that is empty."""
    try:
        values = tuple(map(float, cells))
    except ValueError as error:
        return (), f"no probability: {error}"
    if not all(map(math.isfinite, values)) or min(values) < 0:
        return values, f"a probability that is negative or not finite: {', '.join(cells)}"
    total = math.fsum(values)
    return values, "" if abs(total - 1) <= TOLERANCE else f"the probabilities sum to {total:.4g}, not to 1"
