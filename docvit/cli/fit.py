"""`docvit fit`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.output import MAX_LISTED
from docvit.errors import in_one_line

if TYPE_CHECKING:
    from docvit.training.few_shot import FitReport


@app.command()
def fit(
    context: typer.Context,
    data: options.LabelledData,
    output: options.Output,
    model: options.Model = None,
    add: Annotated[
        bool,
        typer.Option("--add", help="Add the examples to those in --output; what is there already gets its new label."),
    ] = False,
    skip_unreadable: options.SkipUnreadable = False,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    password: options.Password = None,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Fit own classes from a few examples each, in seconds.

    The model keeps its features and gets a new head. Each example is left out in turn and judged by the others: prints
    per class how many are recognised so and the mean score of their own class, and which examples may be mislabelled.
    """
    words = options.words_options(context, no_words=False, ocr=ocr, ocr_pages=ocr_pages)
    from docvit.training.few_shot import fit_documents

    reading: dict[str, Any] = {"skip_unreadable": skip_unreadable, "password": password, "workers": workers}
    reading["ocr_pages"] = words["ocr_pages"]
    _, report = fit_documents(data, output, model=model, add=add, device=device, **reading)
    print_fit(report)


def print_fit(report: FitReport) -> None:
    width = max(len("class"), *map(len, report.classes))
    print(f"{'class':<{width}}  examples  recognised  score   (each left out in turn)")
    for label in report.classes:
        count, right, score = report.of_class(label)
        judged = "         -      -" if math.isnan(right) else f"{right:>10.0%}  {score:5.2f}"
        print(f"{label:<{width}}  {count:>8}  {judged}")
    doubtful = report.doubtful()
    if doubtful:
        print("\nlook at these again: left out, they look like another class")
    for path, label, other, score in doubtful[:MAX_LISTED]:
        print(in_one_line(f"  {path}: {label}, looks like {other} ({score:.2f})"))
    if len(doubtful) > MAX_LISTED:
        print(f"  ... and {len(doubtful) - MAX_LISTED} more")
