"""`docvit classify`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults
from docvit.cli.app import app
from docvit.cli.options import (
    OCR,
    Device,
    MaxPages,
    MinScore,
    Model,
    NoWords,
    OCRPages,
    Password,
    RendererName,
    Timeout,
    Workers,
    words_options,
)
from docvit.cli.output import RowFormat, make_folder, print_passed_over, print_unreadable, row_writer

if TYPE_CHECKING:
    from docvit.inference.classify import DocumentClassifier
    from docvit.inference.prediction import Prediction


@app.command()
def classify(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files, or folders of files.", show_default=False)
    ],
    model: Model = None,
    format: Annotated[RowFormat, typer.Option(help="How rows are written.")] = RowFormat.table,
    explain_to: Annotated[
        Path | None, typer.Option("--explain", metavar="DIR", help="Draw what the model looked at: a PNG per document.")
    ] = None,
    max_pages: MaxPages = 64,
    no_words: NoWords = False,
    ocr: OCR = False,
    ocr_pages: OCRPages = defaults.OCR_PAGES,
    min_score: MinScore = None,
    password: Password = None,
    renderer: Annotated[
        RendererName | None, typer.Option(help="Render pages with this (default: the model's renderer).")
    ] = None,
    timeout: Timeout = 60.0,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Classify documents.

    Prints one row per file, also for a file that cannot be read.

    A folder stands for the documents in it. A folder of page images alone is one document. What was passed over is said
    at the end.

    Put -- before names that begin with a dash.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    reading: dict[str, Any] = {"max_pages": max_pages, "password": password}
    reading |= words_options(context, no_words=no_words, ocr=ocr, ocr_pages=ocr_pages)
    if explain_to is not None:
        make_folder(explain_to, paths)  # an error here must come before the first row
    from tqdm import tqdm

    from docvit.documents.finding import find_documents, find_passed_over
    from docvit.inference.classify import DocumentClassifier

    classifier = DocumentClassifier.from_pretrained(model, device=device, renderer=renderer.value if renderer else None)
    found = find_documents(paths)
    predictions = classifier.predict(found, workers=workers, timeout=timeout, min_score=min_score, **reading)
    failed = []
    write = row_writer(format, found)
    # rows go to standard output, the bar to standard error: together on one terminal the bar would cut through rows
    bar = tqdm(predictions, total=len(found), unit="doc", disable=True if sys.stdout.isatty() else None)
    for prediction in bar:
        write(prediction)
        if prediction.error is not None and not prediction.blank:
            failed.append(prediction.error)
        if explain_to is not None and prediction.error is None:
            _explain(classifier, prediction, explain_to, reading)
    print_unreadable(failed, len(found))
    print_passed_over(find_passed_over(paths))
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
