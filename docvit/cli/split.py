"""`docvit split`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.entry import fail
from docvit.cli.output import json_row, make_folder, print_line, print_passed_over, short_path, table_width

if TYPE_CHECKING:
    from docvit.inference.split import Split


class PartsFormat(str, Enum):
    table, jsonl = "table", "jsonl"


@app.command()
def split(
    context: typer.Context,
    paths: options.Paths,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write each document into this folder, as a PDF or TIFF.")
    ] = None,
    format: Annotated[PartsFormat, typer.Option(help="How rows are written.")] = PartsFormat.table,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Make only cuts that are at least so probable.")] = 0.0,
    drop_blank: Annotated[
        bool, typer.Option("--drop-blank", help="Leave out blank pages before and after a document.")
    ] = False,
    model: options.Model = None,
    no_words: options.NoWords = False,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.SPLIT_PAGES,
    password: options.Password = None,
) -> None:
    """Split files that hold several documents.

    Prints the documents of each file with their pages, both included, and how sure the cut before each is; a row also
    for a file that cannot be read. With --output pages are copied, not drawn again, to STEM-FIRST-LAST-LABEL.pdf.
    Files that are there already stay as they are.

    Exit status: 0 all files were split, 1 some were not, 2 wrong usage.
    """
    reading = options.words_options(context, no_words=no_words, ocr=ocr, ocr_pages=ocr_pages)
    if output is not None:
        make_folder(output, paths)  # an error here must come before the first row
    from tqdm import tqdm

    from docvit.documents.finding import find_documents, find_passed_over
    from docvit.inference.classify import DocumentClassifier
    from docvit.inference.split import split_files

    classifier = DocumentClassifier.from_pretrained(model)
    found = find_documents(paths)
    cutting: dict[str, Any] = {"min_score": min_score, "drop_blank": drop_blank}
    results = split_files(classifier, found, password=password, **reading, **cutting)
    write, failed = _row_writer(format, found), 0
    bar = tqdm(results, total=len(found), unit="doc", disable=True if sys.stdout.isatty() else None)
    for number, result in enumerate(bar):
        if output is not None and result.error is None:
            try:
                result = _write_parts(result, output, password)
            except OSError as error:
                rest = f"{len(found) - number} of {len(found)} files are not written, from {result.path} on"
                fail(f"{error.filename}: {error.strerror}: {rest}")
        write(result)
        failed += result.error is not None and not result.blank
    print_passed_over(find_passed_over(paths))
    if failed:
        raise typer.Exit(1)


def _write_parts(result: Split, folder: Path, password: str | None) -> Split:
    """Writes each part to a file of its own; gives the row with the names."""
    from docvit.documents.errors import DocumentError
    from docvit.documents.parts import write_part

    parts = []
    for part in result.parts:
        label = re.sub(r"[^\w.+-]+", "_", part.label or "blank")
        name = f"{Path(result.path).stem}-{part.first}-{part.last}-{label}"
        try:
            file = write_part(result.path, range(part.first - 1, part.last), folder, name, password=password)
        except DocumentError as error:
            return replace(result, error=error)
        parts.append(replace(part, file=str(file)))
    return replace(result, parts=parts)


def _row_writer(format: PartsFormat, paths: list[str]) -> Callable[[Split], None]:
    if format is PartsFormat.jsonl:
        return lambda result: print(json_row(result), end="", flush=True)
    width = table_width(paths)
    print(f"{'path':<{width}}  {'pages':<9} {'label':<14} {'score':>5}    cut", flush=True)

    def write(result: Split) -> None:
        path = short_path(result.path, width)
        for part in result.parts:
            pages = f"{part.first}-{part.last}" if part.last > part.first else str(part.first)
            score = "" if part.score is None else f"{part.score:.2f}"
            cut = "" if part is result.parts[0] else f"{part.cut:.2f}"
            print_line(f"{path:<{width}}  {pages:<9} {part.label or 'blank':<14} {score:>5}  {cut:>5}".rstrip())
        if result.error is not None:
            print_line(f"{path:<{width}}  {result.error.kind}: {result.error.message}")

    return write
