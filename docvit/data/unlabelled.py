"""Documents without labels: folders, and CSVs with a column `path`."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from docvit.data.labels import DataError
from docvit.documents.pages import PAGE_SUFFIXES, find_documents


def find_unlabelled(data: str | os.PathLike[str]) -> list[str]:
    """The documents in a folder, at any depth (`docvit.documents.pages.find_documents`), or those listed in a CSV.

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
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or []):
                raise DataError(data, [f"missing column: path (found: {', '.join(rows.fieldnames or [])})"])
            return [os.path.normpath(path.parent / row["path"]) for row in rows if row["path"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(data, [f"neither a folder nor a CSV that can be read: {error}"]) from error


def _scans(path: str) -> list[str]:
    """The page images directly in the folder `path`; `path` itself if there are none, or if it is a file."""
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else []
    return [str(p) for p in files if p.suffix.lower() in PAGE_SUFFIXES and not p.name.startswith(".")] or [path]
