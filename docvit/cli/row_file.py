"""The file of `docvit classify --output`: rows appended as they come, from which `--resume` goes on after a kill."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docvit.cli.entry import fail
from docvit.cli.output import COLUMNS, CSV_HEAD, check_new_file, check_suffix, csv_row, json_row
from docvit.files import append, lock, replaced

if TYPE_CHECKING:
    from docvit.inference.prediction import Prediction

SUFFIXES = (".jsonl", ".csv", ".parquet")
TABLE_ROWS = 10_000  # that are in memory at once while a Parquet file is written


def rows_beside(output: Path) -> Path:
    """Where rows are appended: a Parquet file cannot grow, so they wait for their number in JSON lines beside it."""
    return output.with_name(f"{output.name}.partial") if output.suffix.lower() == ".parquet" else output


def check_rows(output: Path, *, resume: bool) -> None:
    """Ends the command unless `output` is new, or there are rows to go on with and `resume` says so."""
    check_suffix(output, SUFFIXES)
    rows = rows_beside(output)
    if not rows.is_file():
        if not (resume and output.is_file()):
            check_new_file(output, "rows.jsonl")
    elif not resume:
        fail(f"{rows} exists: --resume goes on with it; or give --output another name")


class RowFile:
    """Rows of predictions in `output`, one process at a time. A row that a kill cut off is dropped, and comes again.

    Attributes:
        documents: path -> number of rows of earlier runs.
        failed: kinds of the errors in these, of documents that could not be read.

    Raises:
        UserError: the rows are not of this command or have other classes, or another process is writing to the file.
        OSError: it cannot be written.
    """

    def __init__(self, output: Path, classes: Sequence[str], *, resume: bool) -> None:
        self.output, self.classes = output, classes
        self.documents: Counter[str] = Counter()
        self.failed: list[str] = []
        self._csv = output.suffix.lower() == ".csv"
        if resume and output.is_file() and not rows_beside(output).exists():
            _unpack_parquet(output, classes)
        self._file = open(rows_beside(output), "a+b" if resume else "x+b", buffering=0)  # noqa: SIM115 (until __exit__)
        try:
            lock(self._file, f"another docvit classify is writing to {output}: wait until it has ended")
            size = self._read()
            os.ftruncate(self._file.fileno(), size)
            if self._csv and not size:
                append(self._file, CSV_HEAD.encode())
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is KeyboardInterrupt:
            logging.getLogger(__name__).warning("stopped: the same command with --resume goes on from here")
        self._file.close()

    def missing(self, paths: Sequence[str]) -> list[str]:
        """The documents that have no row yet; one that is named twice gets two."""
        left = self.documents.copy()
        found = []
        for path in paths:
            if left[path]:
                left[path] -= 1
            else:
                found.append(path)
        return found

    def write(self, prediction: Prediction) -> None:
        if self._csv:  # a name that is no UTF-8 keeps its bytes; in JSON it is escaped
            append(self._file, csv_row(prediction).encode(errors="surrogateescape"))
        else:
            append(self._file, json_row(prediction).encode(errors="backslashreplace"))

    def finish(self) -> None:
        """Makes the Parquet file of the rows, if it is to be one."""
        if self.output.suffix.lower() == ".parquet":
            with open(self._file.fileno(), "rb", closefd=False) as rows, replaced(self.output) as partial:
                rows.seek(0)
                _write_parquet(partial, rows, self.classes)
            self._file.close()
            os.remove(self._file.name)

    def _read(self) -> int:
        """Counts the rows that are there already; gives the number of their bytes."""
        begin, size = (CSV_HEAD if self._csv else '{"path": ').encode(), 0
        with open(self._file.fileno(), "rb", closefd=False) as rows:
            rows.seek(0)
            if not begin.startswith(rows.read(len(begin))):
                fail(f"{self._file.name} holds no rows of docvit classify: give --output another name")
            rows.seek(0)
            for number, line in enumerate(_whole(rows, quoted=self._csv), 1):
                size += len(line)
                if not (self._csv and number == 1):
                    self._count(line, number)
        return size

    def _count(self, line: bytes, number: int) -> None:
        try:
            row = _of_csv(line) if self._csv else _of_json(line)
            path, error, classes = row["path"], row["error"], set(row["scores"])
        except (ValueError, TypeError, KeyError, csv.Error):
            fail(f"{self._file.name}, row {number} is damaged, or not of docvit classify: repair or remove it")
        wrong = classes - set(self.classes) if self._csv or not classes else classes ^ set(self.classes)
        if wrong:
            names = ", ".join(sorted(wrong)[:3])
            fail(f"{self._file.name}, row {number} is of a model with other classes ({names}): choose that one")
        self.documents[path] += 1
        if error and not (error == "Empty" and row["pages_read"]):  # that one is blank
            self.failed.append(error)


def _whole(file: Iterable[bytes], *, quoted: bool) -> Iterator[bytes]:
    """The rows that end with their line break; one that is `quoted` may hold others."""
    row = b""
    for line in file:
        row += line
        if line.endswith(b"\n") and not (quoted and row.count(b'"') % 2):
            yield row
            row = b""


def _of_csv(line: bytes) -> dict[str, Any]:
    text = io.StringIO(line.decode(errors="surrogateescape"), newline="")
    row: dict[str, Any] = dict(zip(COLUMNS, next(csv.reader(text, strict=True)), strict=True))
    return row | {"scores": {row["label"]} - {""}}


def _of_json(line: bytes) -> dict[str, Any]:
    from docvit.inference.prediction import Prediction

    row = json.loads(line)
    if list(row) != list(Prediction("").as_dict()):
        raise ValueError
    return row | {"error": row["error"] and row["error"]["type"]}


def _schema(classes: Sequence[str]) -> Any:
    """The columns of JSON lines; `scores` has a field per class."""
    import pyarrow as pa

    text, number, count, flag = pa.string(), pa.float64(), pa.int64(), pa.bool_()
    page = {"number": count, "label": text, "score": number, "relevance": number, "blank": flag, "turned": count}
    part = {"first": count, "last": count, "label": text, "score": number, "cut": number, "file": text}
    columns = {"path": text, "label": text, "score": number, "known": number, "unsure": flag}
    columns |= {"scores": pa.struct(dict.fromkeys(classes, number)), "num_pages": count, "pages_read": count}
    columns |= {"page_relevance": pa.list_(number), "note": text, "words_read": count, "words_from": text}
    columns |= {"pages": pa.list_(pa.struct(page | {"failed": flag})), "parts": pa.list_(pa.struct(part))}
    columns |= {"error": pa.struct({"type": text, "message": text})}
    return pa.schema(columns)


def _write_parquet(file: Path, lines: Iterable[bytes], classes: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, lines = _schema(classes), iter(lines)
    with pq.ParquetWriter(file, schema) as table:
        while chunk := [_utf8(line) for line in islice(lines, TABLE_ROWS)]:
            table.write_table(pa.Table.from_pylist(chunk, schema))


def _unpack_parquet(file: Path, classes: Sequence[str]) -> None:
    """Writes the rows of a finished file beside it again, for others to follow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        ours = pq.read_schema(file) == _schema(classes)
    except pa.ArrowInvalid:
        ours = False
    if not ours:
        fail(f"{file} holds no rows of docvit classify, or of a model with other classes: give --output another name")
    with pq.ParquetFile(file) as table, replaced(rows_beside(file)) as partial, open(partial, "w") as rows:
        for chunk in table.iter_batches(TABLE_ROWS):
            rows.writelines(_escaped(row) for row in chunk.to_pylist())


def _escaped(row: Any) -> str:
    """A line of a row whose lone surrogates `_utf8` had to spell out: they are themselves again."""
    return re.sub(r"\\\\(ud[89a-f][0-9a-f]{2})", r"\\\1", json.dumps(row)) + "\n"


def _utf8(line: bytes) -> Any:
    """The row, its lone surrogates escaped: a string of Arrow is UTF-8."""
    text = json.dumps(json.loads(line), ensure_ascii=False)
    return json.loads(re.sub("[\ud800-\udfff]", lambda found: rf"\\u{ord(found[0]):x}", text))
