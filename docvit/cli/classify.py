"""`docvit classify`."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.entry import fail
from docvit.cli.output import RowFormat, make_folder, print_passed_over, print_unreadable, row_writer
from docvit.cli.row_file import SUFFIXES, RowFile, check_rows

if TYPE_CHECKING:
    from docvit.inference.classify import DocumentClassifier
    from docvit.inference.prediction import Prediction


class RendererName(str, Enum):
    pdfium, poppler = "pdfium", "poppler"


@app.command()
def classify(
    context: typer.Context,
    paths: options.Paths,
    model: options.Model = None,
    format: Annotated[RowFormat, typer.Option(help="How rows are written.")] = RowFormat.table,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"File to write rows to instead: {', '.join(SUFFIXES)}.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the rows of --output: what has one is not read again.")
    ] = False,
    explain_to: Annotated[
        Path | None, typer.Option("--explain", metavar="DIR", help="Draw what the model looked at: a PNG per document.")
    ] = None,
    max_pages: options.MaxPages = 64,
    no_words: options.NoWords = False,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    min_score: options.MinScore = None,
    password: options.Password = None,
    renderer: Annotated[
        RendererName | None, typer.Option(help="Render pages with this (default: the model's renderer).")
    ] = None,
    timeout: options.Timeout = 60.0,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Classify documents.

    Prints one row per file, also for a file that cannot be read.

    A folder stands for the documents in it. A folder of page images alone is one document. What was passed over is said
    at the end.

    With --output, the same command and --resume goes on after an interruption, even a kill: no row is lost or repeated.
    Give the same options then. A .parquet comes at the end, out of FILE.parquet.partial.

    Put -- before names that begin with a dash.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    reading: dict[str, Any] = {"max_pages": max_pages, "password": password}
    reading |= options.words_options(context, no_words=no_words, ocr=ocr, ocr_pages=ocr_pages)
    if resume and output is None:
        fail("--resume goes on with the rows of --output: give it, too")
    if output is not None:  # an error here must come before the first row
        if options.is_given(context, "format"):
            fail("--output is written as its suffix says: leave out --format")
        check_rows(output, resume=resume)
    if explain_to is not None:
        make_folder(explain_to, paths)
    from tqdm import tqdm

    from docvit.documents.finding import find_documents, find_passed_over
    from docvit.inference.classify import DocumentClassifier

    classifier = DocumentClassifier.from_pretrained(model, device=device, renderer=renderer.value if renderer else None)
    found = find_documents(paths)
    failed: list[str] = []
    with nullcontext() if output is None else RowFile(output, classifier.classes, resume=resume) as rows:
        write, left = (row_writer(format, found), found) if rows is None else (rows.write, rows.missing(found))
        predictions = classifier.predict(left, workers=workers, timeout=timeout, min_score=min_score, **reading)
        # rows go to standard output, the bar to standard error: together on one terminal the bar would cut through rows
        hidden = True if rows is None and sys.stdout.isatty() else None
        for prediction in tqdm(predictions, total=len(left), unit="doc", disable=hidden):
            if explain_to is not None and prediction.error is None:  # before the row, with which a document is done
                _explain(classifier, prediction, explain_to, reading)
            write(prediction)
            if prediction.error is not None and not prediction.blank:
                failed.append(prediction.error.kind)
        total = len(found)
        if rows is not None:
            rows.finish()
            failed = rows.failed + failed
            total = rows.documents.total() + len(left)
            print(f"{output}: {total} documents" + (f", {total - len(left)} of them before" if rows.documents else ""))
    print_unreadable(failed, total)
    own = None if output is None else os.path.realpath(output)
    print_passed_over([path for path in find_passed_over(paths) if os.path.realpath(path) != own])
    if failed:
        raise typer.Exit(1)


def _explain(classifier: DocumentClassifier, prediction: Prediction, folder: Path, reading: dict[str, Any]) -> None:
    """Draws under the first name that nothing has yet: a document may itself be a picture in that folder."""
    from docvit.documents.errors import DocumentError
    from docvit.documents.formats import numbered
    from docvit.inference.explain import explain

    names = (folder / name for name in numbered(f"{Path(prediction.path).stem}.png"))
    try:
        explain(classifier, prediction.path, **reading).save(next(name for name in names if not os.path.lexists(name)))
    except DocumentError as error:  # read a moment ago, gone now
        logging.getLogger(__name__).warning("no explanation: %s", error)
