"""CSVs as spreadsheets write them: any usual encoding, delimiter and header."""

from __future__ import annotations

import codecs
import csv
import io
import os
import unicodedata
from itertools import chain
from pathlib import Path

from docvit.documents.formats import looks_like

Table = list[tuple[int, dict[str, str]]]
"""(line number, column -> cell) of every row that is not blank."""

_SPREADSHEETS = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"  # xlsx or ods, and xls

_DELIMITERS = ",;\t|"


def read_table(path: Path, columns: tuple[str, ...] | None = None) -> Table:
    """Rows with these columns, whose names may differ in case and outer blanks; missing cells are empty.

    Without `columns` all of them, by the names that the header gives.

    Raises:
        OSError, UnicodeError, csv.Error: the file cannot be read as a CSV.
        KeyError: columns are missing; its arguments are a line for each.
    """
    content = path.read_bytes()
    if content.startswith(_SPREADSHEETS):
        raise csv.Error(f"it is {looks_like(content[:8])}: save its table as CSV")
    lines = io.StringIO(_decoded(content), newline="")
    first, before = lines.readline(), 0
    # blank rows, or "sep=;", which Excel writes for itself
    while first and (not first.strip(_DELIMITERS + "\r\n ") or first.lower().startswith("sep=")):
        first, before = lines.readline(), before + 1
    reader = csv.reader(chain([first], lines), delimiter=_delimiter(first))
    header = [name.strip() for name in next(reader, [])]
    found = {name.lower(): i for i, name in reversed(list(enumerate(header)))}
    columns = tuple(name for name in header if name) if columns is None else columns
    missing = [f"missing column: {name} (found: {', '.join(header)})" for name in columns if name.lower() not in found]
    if missing:
        raise KeyError(*missing)
    rows = ((reader.line_num + before, row) for row in reader)
    return [
        (line, {name: row[i].strip() if (i := found[name.lower()]) < len(row) else "" for name in columns})
        for line, row in rows
        if any(cell.strip() for cell in row)
    ]


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    if b"\0" in content[:2]:  # UTF-16 without its mark: the header begins with a letter of ASCII
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le")
    if content.startswith(codecs.BOM_UTF8):  # the rest is UTF-8, but for names of files that are not
        return content.decode("utf-8-sig", "surrogateescape")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def _delimiter(header: str) -> str:
    """The one that divides the header into most cells; a comma where none does."""
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def resolve(folder: Path, location: str) -> str:
    """A path of a table, relative to its folder; backslashes divide it where nothing is called so."""
    path = os.path.normpath(folder / location)
    if os.sep != "\\" and "\\" in location and not os.path.exists(path):
        return os.path.normpath(folder / location.replace("\\", "/"))
    return path


def as_label(text: str) -> str:
    """Text that looks alike becomes one label: composed (NFC), without invisible characters, blanks as one space."""
    visible = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join(visible.split())
