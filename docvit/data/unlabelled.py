"""Documents without labels: folders, and CSVs with a column `path`."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from docvit.data.labels import DataError
from docvit.data.tables import read_table, resolve
from docvit.documents.finding import find_documents
from docvit.documents.sources import PAGE_SUFFIXES


def find_unlabelled(data: str | os.PathLike[str]) -> list[str]:
    """The documents in a folder, at any depth (`docvit.documents.finding.find_documents`), or those listed in a CSV.

    As in training, page images directly in the folder, or in a folder directly below it, are documents of one page
    each; a deeper folder of page images is one document. Paths in a CSV are relative to the CSV.

    Raises:
        DataError: there is no such folder or CSV, or the CSV has no column `path`.
    """
    path = Path(data)
    if path.is_dir():
        holders = {path, *path.iterdir()}
        return [p for found in find_documents([path]) for p in (_scans(found) if Path(found) in holders else [found])]
    try:
        return [resolve(path.parent, row["path"]) for _, row in read_table(path, ("path",)) if row["path"]]
    except KeyError as error:
        raise DataError(data, error.args) from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(data, [f"neither a folder nor a CSV that can be read: {error}"]) from error


def _scans(path: str) -> list[str]:
    """The page images directly in the folder `path`; `path` itself if there are none, or if it is a file."""
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else []
    return [str(p) for p in files if p.suffix.lower() in PAGE_SUFFIXES and not p.name.startswith(".")] or [path]
