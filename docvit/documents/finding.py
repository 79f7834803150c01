"""The documents that paths stand for, and what is passed over."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from docvit.documents.formats import SUFFIXES, suffix_of
from docvit.documents.sources import PAGE_SUFFIXES

SORT_LOG = "docvit-sort.jsonl"

UNSURE, UNREADABLE = "unsure", "unreadable"
"""Folders of `docvit sort` for documents without a label."""

_OUTPUTS = ("recipe.json", "model.safetensors", "checkpoint.safetensors")


def find_documents(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """The documents that these paths stand for, in order.

    - A file stands for itself, whatever its suffix; so does a path that does not exist: reading it says NotFound.
    - A folder whose own name ends like a document's (`x.pdf`) stands for itself; reading it says Unsupported.
    - A folder with page images (`PAGE_SUFFIXES`) and neither PDFs, TIFFs nor folders is one document.
    - Any other folder gives what lies in it, and so on downwards: PDFs, TIFFs, images (each a document of one page) and
      folders that are one document, in natural order (p2 before p10). Other files are passed over.
    - Whatever is hidden (its name begins with a dot) is passed over inside folders, and so are links to folders.
    - A folder that a training wrote (`is_output`) is passed over inside folders.
    - A folder that gives nothing stands for itself when it was named: reading it says Empty.
    """
    return [found for path in paths for found in _below(os.fspath(path)) or [os.fspath(path)]]


def _below(path: str) -> list[str]:
    if not os.path.isdir(path) or suffix_of(path) in SUFFIXES:
        return [path]
    try:
        entries = entries_of(path)
    except OSError:
        return [path]
    folders = {entry.name for entry in entries if os.path.isdir(entry)}
    entries = [entry for entry in entries if entry.name in folders or suffix_of(entry.name) in SUFFIXES]
    if entries and not folders and all(suffix_of(entry.name) in PAGE_SUFFIXES for entry in entries):
        return [path]
    found: list[str] = []
    for entry in entries:
        if entry.name not in folders:
            found.append(entry.path)
        elif not entry.is_symlink() and not is_output(entry.path):
            found += _below(entry.path)
    return found


def find_passed_over(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """What `find_documents` passes over below these folders: files that are no documents by their suffix, and outputs.

    Hidden files, links to folders and the log of a sort are not counted.
    """
    found: list[str] = []
    for path in [os.fspath(path) for path in paths]:
        try:
            entries = entries_of(path) if os.path.isdir(path) else []
        except OSError:  # it stands for itself, and reading it says so
            entries = []
        for entry in entries:
            if os.path.isdir(entry):
                output, linked = is_output(entry.path), entry.is_symlink()
                found += [entry.path] if output else [] if linked else find_passed_over([entry.path])
            elif suffix_of(entry.name) not in SUFFIXES and entry.name != SORT_LOG:
                found.append(entry.path)
    return found


def is_output(folder: str | os.PathLike[str]) -> bool:
    """Whether a training wrote this folder: what lies there is no data."""
    return any(os.path.exists(os.path.join(folder, name)) for name in _OUTPUTS)


def is_of_sort(folder: Path) -> bool:
    """Whether `docvit sort` made this folder and it is no class: its DIR, or what in there has no label."""
    return (folder / SORT_LOG).is_file() or (folder.name in (UNSURE, UNREADABLE) and is_of_sort(folder.parent))


def entries_of(folder: str) -> list[os.DirEntry[str]]:
    """What is not hidden. Ask os.path what an entry is: its own methods raise for a link that leads in a circle."""
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: _natural(e.name))


def _natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts], name
