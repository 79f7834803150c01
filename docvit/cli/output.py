"""What the commands print: rows of predictions, reports, costs."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from docvit.cli.entry import fail
from docvit.errors import in_one_line

if TYPE_CHECKING:
    from docvit.data.metrics import Report
    from docvit.evaluation.cost import Cost, Inspection, MeasuredCost
    from docvit.inference.prediction import Prediction
    from docvit.inference.split import Split

COLUMNS = ("path", "label", "score", "known", "unsure", "num_pages", "pages_read", "error", "message")
CSV_HEAD = ",".join(COLUMNS) + "\n"
MAX_LISTED = 20


class RowFormat(str, Enum):
    table, jsonl, csv = "table", "jsonl", "csv"


def row_writer(format: RowFormat, paths: Sequence[str]) -> Callable[[Prediction], None]:
    """A function that prints a prediction as a row, at once; the head of the table is already printed."""
    if format is RowFormat.table:
        return _table_writer(paths)
    if format is RowFormat.csv:
        print(CSV_HEAD, end="", flush=True)
    row = csv_row if format is RowFormat.csv else json_row
    return lambda prediction: print(row(prediction), end="", flush=True)


def json_row(row: Prediction | Split) -> str:
    return json.dumps(row.as_dict(), ensure_ascii=False) + "\n"


def csv_row(prediction: Prediction) -> str:
    error = prediction.error
    failure = {"error": error.kind, "message": error.message} if error else {"error": "", "message": ""}
    line = io.StringIO()
    # with its own end of lines, \r\n, it quotes what holds a \r, too
    csv.DictWriter(line, COLUMNS, extrasaction="ignore").writerow(prediction.as_dict() | failure)
    return line.getvalue().removesuffix("\r\n") + "\n"


def _table_writer(paths: Sequence[str]) -> Callable[[Prediction], None]:
    width = table_width(paths)
    print(f"{'path':<{width}}  {'label':<14} {'score':>5}  pages", flush=True)

    def write(prediction: Prediction) -> None:
        path = short_path(prediction.path, width)
        if prediction.error is not None:
            print_line(f"{path:<{width}}  {prediction.error.kind}: {prediction.error.message}")
            return
        pages = str(prediction.num_pages)
        if prediction.pages_read != prediction.num_pages:
            pages = f"{prediction.pages_read} of {pages}"
        label = f"{prediction.label:<14} {prediction.score:5.2f}"
        if prediction.unsure:
            label = f"{f'unsure ({prediction.label} {prediction.score:.2f})'.replace(' 0.', ' .'):<20}"
        print_line(f"{path:<{width}}  {label}  {pages}" + (f"  {prediction.note}" if prediction.note else ""))

    return write


def table_width(paths: Sequence[str]) -> int:
    """Of the column of paths in a table."""
    return min(60, max(len(path) for path in paths))


def short_path(path: str, width: int) -> str:
    return path if len(path) <= width else "…" + path[1 - width :]


def print_line(row: str) -> None:
    print(in_one_line(row), flush=True)


def print_passed_over(paths: Sequence[str]) -> None:
    """Says what a search for documents passed over, and why: the number of each kind, and the first paths."""
    if not paths:
        return
    suffixes = [os.path.splitext(path)[1].lower() or "without one" for path in paths]
    kinds = Counter("written by a training" if os.path.isdir(p) else s for p, s in zip(paths, suffixes, strict=True))
    count = f"{len(paths)} file{'' if len(paths) == 1 else 's'}"
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    shown = [f"  {in_one_line(path)}" for path in paths[:MAX_LISTED]]
    if len(paths) > MAX_LISTED:
        shown.append(f"  ... and {len(paths) - MAX_LISTED} more")
    print(f"{count} passed over, no documents by their suffix: {counted}", *shown, sep="\n", file=sys.stderr)


@contextmanager
def repeated_at_the_end(*loggers: str) -> Iterator[None]:
    """Prints again what these loggers warned of before a long run, for those who look when it has ended."""
    kept: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]
    for name in loggers:
        logging.getLogger(name).addHandler(handler)
    try:
        yield
    finally:
        for name in loggers:
            logging.getLogger(name).removeHandler(handler)
    print(*kept, sep="\n", end="\n" if kept else "", file=sys.stderr)


def check_suffix(file: Path, suffixes: Sequence[str]) -> None:
    """Ends the command unless the suffix of `file` is one of these, and can be written here."""
    if file.suffix.lower() not in suffixes:
        fail(f"--output {file}: the suffix says how it is written; choose {', '.join(suffixes)}")
    if file.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ModuleNotFoundError:
            others = " or ".join(suffix for suffix in suffixes if suffix != ".parquet")
            fail(f'a .parquet file needs pyarrow: pip install "docvit[parquet]", or write {others}')


def check_new_file(file: Path, example: str) -> None:
    """Ends the command unless a new `file` can be written: better before hours of reading than after them.

    `example` is a name for it, in case that a folder is given.
    """
    if file.is_dir():
        fail(f"{file} is a folder: give --output a name in it, such as {file / example}")
    if os.path.lexists(file):
        fail(f"{file} exists: give --output another name, or remove it")
    make_folder(file.parent)


def make_folder(folder: Path, inputs: Iterable[str] = ()) -> None:
    """Makes a folder to write to; OSError, if nothing can be written there, comes now and not after hours of work.

    Ends the command if it lies in a folder among `inputs`: what is written would be documents, and a class, of that.
    """
    for path in inputs:
        if os.path.isdir(path) and folder.resolve().is_relative_to(Path(path).resolve()):
            fail(f"{folder} lies in {path} and would become data the next time: choose a folder outside")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None


def print_unreadable(errors: Sequence[str], total: int) -> None:
    """The number of documents that could not be read, by the kinds of their errors."""
    if errors:
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(errors).most_common())
        print(f"{len(errors)} of {total} documents could not be read: {kinds}", file=sys.stderr)


def print_folders(folders: Iterable[str]) -> None:
    """The number of documents in each folder, from a folder for each document."""
    counts = Counter(folders)
    rows = [(in_one_line(folder), str(count)) for folder, count in sorted(counts.items())]
    _print_aligned([("folder", "documents"), *rows, ("all", str(counts.total()))], left=(0,))


def print_report(r: Report, unreadable: int) -> None:
    skipped = f", {unreadable} unreadable" if unreadable else ""
    print(f"{r.documents} documents{skipped}")
    print(f"accuracy {r.accuracy:.3f}   macro-F1 {r.macro_f1:.3f}   ECE {r.ece:.3f}   AURC {r.aurc:.3f}")
    surest = "   ".join(f"{share} {value:.3f}" for share, value in r.accuracy_of_surest.items())
    print(f"accuracy of the surest {surest}\n")
    met = [i for i, row in enumerate(r.confusion) if any(row) or any(other[i] for other in r.confusion)]
    width = max(len(r.classes[i]) for i in met)
    print(f"{'class':<{width}}  precision  recall    F1  documents   predicted as (columns in the order of the rows)")
    for i in met:
        c = r.per_class[r.classes[i]]
        measured = f"{c['precision']:9.2f}  {c['recall']:6.2f}  {c['f1']:4.2f}"
        if not c["support"]:
            measured = f"{'-':>9}  {'-':>6}     -"
        cells = " ".join(f"{r.confusion[i][j]:4d}" for j in met)
        print(f"{r.classes[i]:<{width}}  {measured}  {c['support']:9.0f}   {cells}")
    absent = [name for i, name in enumerate(r.classes) if i not in met]
    if absent:
        print(f"neither among the documents nor predicted: {', '.join(absent)}")


def print_sureness(sureness: Mapping[str, float | None]) -> None:
    """How many answers are sure and right, and how well `known` separates unknown documents."""
    sure, right, auroc = (sureness[name] for name in ("coverage", "accuracy_of_sure", "known_auroc"))
    accuracy = "" if right is None else f", and {right:.1%} of these answers are right"
    print(f"\nsure of {sure:.1%} of the documents{accuracy}")
    if auroc is not None:
        print(f"unknown documents: AUROC of known {auroc:.3f}, unsure of {sureness['unknown_unsure']:.1%}")


def print_inspection(found: Inspection) -> None:
    read = f"{len(found.pages)} of " if len(found.pages) != found.num_pages else ""
    print(f"{found.path}: {read}{found.num_pages} pages\n")
    pages = [(str(p.page), _by(p.grid), str(p.kept), str(p.blank)) for p in found.pages]
    kept, blank = sum(p.kept for p in found.pages), sum(p.blank for p in found.pages)
    rows: list[tuple[str, ...]] = [("page", "grid", "kept", "blank"), *pages, ("all", "", str(kept), str(blank))]
    words = [p.words for p in found.pages if p.words is not None]
    if words:  # the model reads them
        rows = [(*row, cell) for row, cell in zip(rows, map(str, ("words", *words, sum(words))), strict=True)]
    _print_aligned(rows)
    a = found.attention
    block = f"A block: {a.heads} heads with query, key and value layers {_by(a.query)}; {_by(a.output)} after them."
    print(f"\n{block if any(cost.predicted.blocks for cost in found.costs) else 'No blocks.'}\n")
    head = ("scopes", "patches", "tokens", "score matrices", "in all", "FLOPs", "measured", "activations", "measured")
    rows = [head]
    for cost in found.costs:
        rows.append((cost.scopes, *_cost("kept", cost.predicted, cost.measured)))
        rows += [("", *_cost("blank too", cost.undropped)), ("", *_cost("padded", cost.padded))]
    _print_aligned(rows, left=(0, 1, 3))
    print(
        "\nscore matrices: one per head of a block that sees the page, or the document; never all in memory."
        "\nactivations: memory kept for a backward pass. padded: all patches, every page as large as the largest."
    )
    if words:
        shares = [100 * cost.predicted.word_flops / cost.predicted.flops for cost in found.costs]
        source = f" from {found.words_from}" if found.words_from else ""
        share = " to ".join(dict.fromkeys(f"{value:.2g}" for value in (min(shares), max(shares))))
        print(
            f"words: {sum(words)}{source}; mapping them to tokens is {share} % of the FLOPs."
            "\nNot counted: looking up and adding the vectors of their n-grams."
        )


def _cost(patches: str, cost: Cost, measured: MeasuredCost | None = None) -> tuple[str, ...]:
    sides = "; ".join(_squares(scope, sides) for scope, sides in sorted(cost.scores.items(), reverse=True))
    flops, memory = (_engineering(measured.flops), _engineering(measured.memory, "B")) if measured else ("", "")
    in_all, predicted = _engineering(cost.score_memory, "B"), _engineering(cost.memory, "B")
    return patches, str(cost.tokens), sides, in_all, _engineering(cost.flops), flops, predicted, memory


def _engineering(number: float, unit: str = "") -> str:
    """With a decimal prefix: 12345 -> "12.35 k"."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while round(number, 2) >= 1000 and len(prefixes) > 1:
        number /= 1000
        prefixes.pop(0)
    return f"{number:.2f} {prefixes[0]}{unit}".rstrip()


def _squares(scope: str, sides: Sequence[int]) -> str:
    low, high = min(sides), max(sides)
    name = scope if len(sides) == 1 else f"{scope}s"
    return f"{len(sides)} {name} {low}²" + (f" to {high}²" if high > low else "")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _print_aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        print("  ".join(cells).rstrip())


def print_last(output: Path, history: Sequence[Mapping[str, float]]) -> None:
    """The record of the last epoch, in one line."""
    last = "  ".join(f"{name} {value:.3g}" for name, value in history[-1].items())
    print(f"{output}: {last}")
