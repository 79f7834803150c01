"""What the tests of sorting share: predictions by name, the command without its printing, and a full inbox."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from docvit.documents.errors import Unreadable
from docvit.documents.finding import SORT_LOG
from docvit.inference import sort
from docvit.inference.prediction import Prediction
from docvit.inference.sort_log import SortLog

forks = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def predict(paths):
    """By name: x-LABEL.pdf has the label, bad-*.pdf cannot be read, dim-*.pdf is unsure."""
    for path in paths:
        stem = Path(path).stem
        if stem.startswith("bad"):
            yield Prediction(path, error=Unreadable(path, "it is damaged"))
        else:
            yield Prediction(path, stem.rpartition("-")[2], 0.9, unsure=stem.startswith("dim"))


LABELS = ("form", "report")


def run(paths, into, *, move=False, predict=predict, labels=LABELS):
    """The command without its printing: the rows."""
    with SortLog(str(into)) as log:
        rows = list(sort.resume(log))
        documents, unfit = sort.find_to_sort([str(p) for p in paths], str(into), log.entries.values())
        folders = sort.folder_names(labels)
        return rows + unfit + list(sort.sort_documents(log, documents, predict, folders, move=move))


def undo(into, paths=()):
    with SortLog(str(into)) as log:
        rows = list(sort.resume(log, undo=True))
        return rows + list(sort.undo_documents(log, sort.to_undo(log.entries.values(), [str(p) for p in paths])))


def tree(folder):
    """File -> content, of all files that are no log."""
    files = (p for p in Path(folder).rglob("*") if p.is_file() and p.name != SORT_LOG)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


def make_inbox(tmp_path):
    """Two documents of a file, one that cannot be read, one unsure, and a folder of pages with a hidden file."""
    names = ("a-form.pdf", "b-report.pdf", "bad-c.pdf", "dim-d-form.pdf", "sub/scan-form/1.png", "sub/scan-form/2.png")
    for name in (*names, "sub/scan-form/.notes", "letter.docx"):
        (tmp_path / "inbox" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "inbox" / name).write_bytes(name.encode() * 100)
    return tmp_path / "inbox"


SORTED = {
    "form/a-form.pdf": "a-form.pdf",
    "report/b-report.pdf": "b-report.pdf",
    "unreadable/bad-c.pdf": "bad-c.pdf",
    "unsure/dim-d-form.pdf": "dim-d-form.pdf",
    **{f"form/scan-form/{name}": f"sub/scan-form/{name}" for name in ("1.png", "2.png", ".notes")},
}
