"""The log of `docvit sort`: JSON lines from which a sort goes on after a kill, and is undone."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from docvit.documents.finding import SORT_LOG
from docvit.errors import UserError
from docvit.files import append, lock
from docvit.inference.sort_copy import sync_folder


@dataclass(frozen=True)
class Entry:
    """A document that is sorted; a line of the log.

    Attributes:
        number: of the document in this log.
        source: where it came from, absolute.
        target: where it goes, below the folder of the log.
        move: whether the original is removed.
        label: the most probable class; None for a document that was not read.
        score: its probability.
        fingerprint: of the original (`docvit.inference.sort_copy.fingerprint`).
        state: `begun`, `copied` (the original may still be there), `sorted`; then, when it is undone, `returning`,
            `returned` (the target may still be there), `undone`. Written before and after each step.
        back: where it was brought back to.
    """

    number: int
    source: str
    target: str
    move: bool
    label: str | None
    score: float | None
    fingerprint: tuple[int, int, int]
    state: str = "begun"
    back: str | None = None


class SortLog:
    """The documents that were sorted into `folder`; opened for writing, one process at a time.

    Raises:
        UserError: the folder is a file, the log is damaged, or another process is writing to it.
        OSError: the log cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        if os.path.lexists(folder) and not os.path.isdir(folder):
            raise UserError(f"--into {folder} is not a folder: choose another name")
        os.makedirs(folder, exist_ok=True)
        file = os.path.join(folder, SORT_LOG)
        self._file = open(file, "a+b", buffering=0)  # noqa: SIM115 (open as long as the log is)
        try:
            lock(self._file, f"another docvit sort is writing to {folder}: wait until it has ended")
            self._file.seek(0)
            self.entries, size = _parsed(self._file.readall(), file)
            os.ftruncate(self._file.fileno(), size)  # a line that a kill cut off
            sync_folder(folder)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> SortLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, entry: Entry) -> Entry:
        """Appends a line; gives `entry`. It is on the disk then, unless it says what the next command would find out.

        Raises:
            OSError: the disk is full; the log is as before then.
        """
        line = json.dumps(asdict(entry)).encode("ascii") + b"\n"
        append(self._file, line, sync=entry.state not in ("sorted", "undone"))
        self.entries[entry.number] = entry
        return entry

    def path(self, entry: Entry) -> str:
        return os.path.join(self.folder, entry.target)


def read_log(folder: str) -> dict[int, Entry]:
    """The last state of each document in the log of `folder`; nothing if there is no log.

    Raises:
        UserError: the log is damaged.
    """
    file = os.path.join(folder, SORT_LOG)
    if not os.path.exists(file):
        return {}
    with open(file, "rb") as opened:
        return _parsed(opened.read(), file)[0]


def _parsed(content: bytes, file: str) -> tuple[dict[int, Entry], int]:
    """The entries, and the number of bytes of whole lines: a kill may have cut the last one off."""
    size = content.rfind(b"\n") + 1
    entries: dict[int, Entry] = {}
    for number, line in enumerate(content[:size].splitlines(), 1):
        try:
            values = json.loads(line)
            files, size_of_files, changed = values["fingerprint"]
            entry = Entry(**values | {"fingerprint": (files, size_of_files, changed)})
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{file}, line {number} is damaged: repair or remove it") from None
        entries[entry.number] = entry
    return entries, size
