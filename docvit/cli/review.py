"""`docvit review`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.output import check_new_file, print_passed_over


@app.command()
def review(
    context: typer.Context,
    paths: options.Paths,
    output: Annotated[Path, typer.Option(metavar="FILE.html", help="The page to write.")],
    model: options.Model = None,
    max_pages: options.MaxPages = 64,
    no_words: options.NoWords = False,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    password: options.Password = None,
    timeout: options.Timeout = 60.0,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Write a page to look through documents and correct their labels.

    One HTML file, which a browser opens without a server or a network: first pages by label, the least sure first; all
    pages of a document with what counted; a chooser of labels, known or new. It exports a CSV for docvit fit and train.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    reading: dict[str, Any] = {"max_pages": max_pages, "password": password, "timeout": timeout, "workers": workers}
    reading |= options.words_options(context, no_words=no_words, ocr=ocr, ocr_pages=ocr_pages)
    check_new_file(output, "review.html")

    from docvit.documents.finding import find_documents, find_passed_over
    from docvit.inference.classify import DocumentClassifier
    from docvit.inference.review import review

    classifier = DocumentClassifier.from_pretrained(model, device=device)
    predictions = review(classifier, find_documents(paths), output, **reading)
    failed = [p.error for p in predictions if p.error is not None and not p.blank]
    for error in failed:
        print(f"{error.kind}: {error}", file=sys.stderr)
    print_passed_over(find_passed_over(paths))
    count = f"{len(predictions)} document{'' if len(predictions) == 1 else 's'}"
    print(f"{output}: {count}, {output.stat().st_size / 1e6:.1f} MB; open it in a browser")
    if failed:
        raise typer.Exit(1)
