"""Documents sorted into a folder per label, so that a kill at any moment loses nothing: `docvit sort`.

Every step is logged before and after (`docvit.inference.sort_log`). The next command on the same folder finishes what
was begun (`resume`) before it begins anything else.
"""

from __future__ import annotations

import contextlib
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath

from docvit.documents.finding import SORT_LOG, UNREADABLE, UNSURE, entries_of, find_documents
from docvit.documents.formats import numbered, suffix_of
from docvit.documents.sources import PAGE_SUFFIXES
from docvit.errors import UserError
from docvit.inference.prediction import Prediction
from docvit.inference.sort_copy import PARTIAL, contains, copy_checked, fingerprint, remove, sync_folder
from docvit.inference.sort_log import Entry, SortLog

_NOT_IN_NAMES = '<>:"/\\|?*'  # on some system
_DEVICES = {"con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(1, 10))}

Predict = Callable[[list[str]], Iterable[Prediction]]


@dataclass(frozen=True)
class Row:
    """What became of one document: where it lies, if it was sorted or brought back, and what was wrong with it."""

    path: str
    target: str | None = None
    problem: str | None = None


@dataclass
class Names:
    """File names in the folders below `folder`, of which no two differ in case or Unicode normalisation alone."""

    folder: str
    _taken: dict[str, set[str]] = field(default_factory=dict)
    _candidates: dict[tuple[str, str], Iterator[str]] = field(default_factory=dict)

    def free(self, inner: str, name: str) -> str:
        """The name, with a number if it is taken; it is taken then."""
        taken = self._taken.setdefault(inner, set())
        if not taken:
            taken.add(_folded(PARTIAL))
            with contextlib.suppress(OSError):  # there is no such folder yet, or making it says what is wrong
                taken.update(map(_folded, os.listdir(os.path.join(self.folder, inner))))
        return _take(self._candidates.setdefault((inner, name), numbered(name)), taken)


def destination(prediction: Prediction, folders: Mapping[str, str]) -> str:
    """The folder that a document goes to; `folders` are those of the labels. A blank one has no label to be sure of."""
    if prediction.error is not None and not prediction.blank:
        return UNREADABLE
    if prediction.label is None or prediction.unsure:
        return UNSURE
    return folders[prediction.label]


def folder_names(labels: Iterable[str]) -> dict[str, str]:
    """A folder for each label: names that are valid everywhere, and differ in more than case."""
    names: dict[str, str] = {}
    taken = {_folded(name) for name in (UNSURE, UNREADABLE, SORT_LOG)}
    for label in labels:
        names[label] = _take(numbered(_safe(label)), taken)
    return names


def _take(candidates: Iterator[str], taken: set[str]) -> str:
    name = next(name for name in candidates if _folded(name) not in taken)
    taken.add(_folded(name))
    return name


def _safe(label: str) -> str:
    cleaned = "".join("_" if c in _NOT_IN_NAMES or not c.isprintable() else c for c in label)
    name = unicodedata.normalize("NFC", cleaned).strip(" .") or "_"
    return f"{name}_" if name.split(".")[0].lower() in _DEVICES else name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def find_to_sort(paths: Sequence[str], into: str, before: Iterable[Entry]) -> tuple[list[str], list[Row]]:
    """The documents below `paths` that are not sorted yet, and a row for each path that gives none.

    What lies in `into` counts as sorted, and so does what `before` has sorted and is unchanged. Page images come first:
    a folder where they alone are left would be taken for one document after a kill.

    Raises:
        UserError: a path lies in `into`, or `into` in a document.
    """
    home = os.path.realpath(into)
    for path in paths:
        if lies_in(canonical(path), home):
            way = "--undo it first, or choose another folder"
            raise UserError(f"{path} lies in --into {into}, where everything counts as sorted: {way}")
    documents = dict.fromkeys(canonical(path) for path in find_documents(paths))
    known = {entry.source: entry for entry in before if entry.state != "undone"}
    found, problems = [], []
    for path in documents:
        in_another = any(str(parent) in documents for parent in PurePath(path).parents)
        if in_another or lies_in(path, home) or _is_done(path, known):
            continue
        if lies_in(home, path):
            raise UserError(f"--into {into} lies in {path}, which is one document: choose a folder outside")
        problem = _problem(path)
        if problem and not any(lies_in(source, path) for source in known):  # else what lay in it was moved
            problems.append(Row(path, problem=problem))
        elif not problem:
            found.append(path)
    return sorted(found, key=lambda path: suffix_of(path) not in PAGE_SUFFIXES), problems


def canonical(path: str) -> str:
    """Absolute; links among its folders are resolved, itself is not."""
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def lies_in(path: str, folder: str) -> bool:
    return PurePath(path).is_relative_to(folder)


def _is_done(path: str, known: Mapping[str, Entry]) -> bool:
    entry = known.get(path)
    if entry is None:
        return False
    if not os.path.lexists(path):
        return True  # it was moved
    if entry.move and entry.state == "sorted":
        return False  # another document under the name of one that was moved
    with contextlib.suppress(OSError):
        return fingerprint(path) == entry.fingerprint
    return False


def _problem(path: str) -> str:
    """Why a path is nothing to sort, if it is not."""
    if not os.path.lexists(path):
        return "there is no such file"
    if not os.path.isdir(path):
        return ""
    try:
        pages = [entry for entry in entries_of(path) if suffix_of(entry.name) in PAGE_SUFFIXES]
    except OSError as error:
        return _said(error)
    return "" if pages else "no documents in this folder"


def preview(documents: list[str], into: str, predict: Predict, folders: Mapping[str, str]) -> Iterator[Row]:
    """Where `sort_documents` would put each document; nothing is written."""
    names = Names(into)
    for path, prediction in zip(documents, predict(documents), strict=True):
        inner = destination(prediction, folders)
        yield Row(path, os.path.join(inner, names.free(inner, os.path.basename(path))), _unread(prediction))


def sort_documents(
    log: SortLog, documents: list[str], predict: Predict, folders: Mapping[str, str], *, move: bool = False
) -> Iterator[Row]:
    """Copies or moves documents into the folder of `log`; one that fails gives its row, and the rest goes on.

    A link is copied (what it leads to), never moved. A move is a copy that is synced and checked before the original
    is removed.

    Args:
        documents: from `find_to_sort`.
        predict: paths -> a prediction for each, in order.
        folders: label -> folder (`folder_names`).
    """
    names = Names(log.folder)
    for path, prediction in zip(documents, predict(documents), strict=True):
        inner = destination(prediction, folders)
        try:
            mark = fingerprint(path)
            target = os.path.join(inner, names.free(inner, os.path.basename(path)))
            number = max(log.entries, default=0) + 1
            entry = Entry(number, path, target, move, prediction.label, prediction.score, mark)
            advance(log, log.write(entry))
        except OSError as error:
            yield Row(path, problem=_said(error))
        else:
            yield Row(path, target, _unread(prediction))


def _unread(prediction: Prediction) -> str | None:
    error = prediction.error
    return f"{error.kind}: {error.message}" if error is not None and not prediction.blank else None


def resume(log: SortLog, *, undo: bool = False) -> Iterator[Row]:
    """Finishes what an interrupted command began; with `undo`, what was not copied yet is dropped instead."""
    for entry in [entry for entry in log.entries.values() if entry.state not in ("sorted", "undone")]:
        try:
            advance(log, _as_left(log, entry, drop=undo))
        except OSError as error:
            yield Row(entry.source, problem=_said(error))


def _as_left(log: SortLog, entry: Entry, *, drop: bool) -> Entry:
    """The entry in the state that a kill left it in: a copy may be complete, or its name taken by somebody else."""
    begun = entry.state == "begun"
    if not begun and entry.state != "returning":
        return entry
    original, copy = (os.path.realpath(entry.source), log.path(entry)) if begun else (log.path(entry), entry.back or "")
    remove(os.path.join(os.path.dirname(copy), PARTIAL))
    if os.path.lexists(original) and contains(copy, original):
        return log.write(replace(entry, state="copied" if begun else "returned"))
    changed = not os.path.exists(original) or (begun and fingerprint(original) != entry.fingerprint)
    if changed or os.path.lexists(copy) or (begun and drop):
        return log.write(replace(entry, state="undone" if begun else "sorted"))  # found again, if it is still there
    return entry


def advance(log: SortLog, entry: Entry) -> Entry:
    """Takes a document through the steps that are left, each of which may have been done before a kill.

    Raises:
        OSError: a step failed; the next command tries it again.
    """
    source, target, back = entry.source, log.path(entry), entry.back or entry.source
    if entry.state == "begun":
        if not os.path.isdir(os.path.dirname(target)):
            os.makedirs(os.path.dirname(target))
            sync_folder(log.folder)
        copy_checked(source, target)
        entry = log.write(replace(entry, state="copied"))
    if entry.state == "copied":
        if entry.move and os.path.lexists(source):
            if not os.path.lexists(target):  # somebody took the copy away
                return log.write(replace(entry, state="undone"))
            if contains(target, source):
                remove(source)
            else:  # it is a link, or has changed since it was copied: it stays
                entry = replace(entry, move=False)
        entry = log.write(replace(entry, state="sorted"))
    if entry.state == "returning":
        os.makedirs(os.path.dirname(back), exist_ok=True)
        if not os.path.exists(back):
            copy_checked(target, back)
        entry = log.write(replace(entry, state="returned"))
    if entry.state == "returned":
        if os.path.lexists(target) and contains(os.path.realpath(back), target):
            remove(target)
        entry = log.write(replace(entry, state="undone"))
    return entry


def to_undo(entries: Iterable[Entry], paths: Sequence[str] = ()) -> list[Entry]:
    """The sorted documents that came from `paths`, all without any; the last first."""
    roots = [canonical(path) for path in paths]
    wanted = [e for e in entries if e.state == "sorted" and (not roots or any(lies_in(e.source, r) for r in roots))]
    return sorted(wanted, key=lambda entry: entry.number, reverse=True)


def undo_documents(log: SortLog, entries: Sequence[Entry]) -> Iterator[Row]:
    """Brings documents back to where they came from; copies are removed if their original is there unchanged.

    A path that is taken again is not overwritten: the document gets a number. A folder that is empty then is removed.
    """
    for entry in entries:
        target = log.path(entry)
        try:
            back, problem = _way_back(entry, target)
            if problem:
                yield Row(target, problem=problem)
                continue
            step = replace(entry, state="returning", back=back) if back else replace(entry, state="undone")
            advance(log, log.write(step))
        except OSError as error:
            yield Row(target, problem=_said(error))
        else:
            yield Row(target, back or entry.source)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(target))


def _way_back(entry: Entry, target: str) -> tuple[str | None, str]:
    """(where a document is brought back to, what is in the way): None if it is there already, "" if nothing."""
    there = os.path.lexists(entry.source)
    if not os.path.lexists(target):
        return None, "" if there else "no longer there: it was moved or removed by hand"
    if not there:
        return entry.source, ""
    if os.path.exists(entry.source) and contains(os.path.realpath(entry.source), target):
        return entry.source, ""
    if not entry.move:
        return None, f"left where it is: it differs from {entry.source}, which was changed since"
    folder, name = os.path.split(entry.source)
    return os.path.join(folder, Names(folder).free("", name)), ""


def folders_in_use(log: SortLog) -> list[str]:
    """The folder of each document that is sorted."""
    return [os.path.dirname(entry.target) for entry in log.entries.values() if entry.state in ("copied", "sorted")]


def _said(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"
