"""`docvit evaluate` and `docvit inspect`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from docvit.cli.app import app
from docvit.cli.entry import fail
from docvit.cli.options import Device, MaxPages, Model, ReportFormat, Timeout, Workers
from docvit.cli.output import print_inspection, print_report
from docvit.data.labels import LabelledDocuments, read_labelled
from docvit.data.metrics import report
from docvit.documents.errors import DocumentError
from docvit.documents.workers import read_documents
from docvit.evaluation.compare import compare
from docvit.evaluation.cost import inspect_document
from docvit.hardware import choose_device
from docvit.inference.classify import DocumentClassifier
from docvit.inference.strategies import STRATEGIES, get_strategy
from docvit.model.pretrained import load_pretrained


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with a sub folder a class, or CSV with path,label.")],
    model: Model = None,
    against: Annotated[
        str | None, typer.Option(metavar="M", help="A second model: the two side by side, their cost included.")
    ] = None,
    strategy: Annotated[
        str, typer.Option(metavar="NAME", help=f"How pages make a document: {', '.join(STRATEGIES)}.")
    ] = "document",
    format: Annotated[ReportFormat, typer.Option(help="How the report is written.")] = ReportFormat.table,
    max_pages: MaxPages = 64,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Measure a model on labelled documents: accuracy, macro-F1, calibration, per class, confusion.

    ECE: how far scores are from how often they are right, 0 at best.

    AURC: share of errors among the documents that it is surest of, averaged over how many are taken, 0 at best.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    get_strategy(strategy)  # a name that there is not shall not wait for a model
    if against is not None and (strategy != "document" or against == model):
        fail("--against wants another model than --model, and no --strategy")
    classifier = DocumentClassifier.from_pretrained(model, device=device)
    labelled = read_labelled(data, classes=classifier.classes)
    if against is not None:
        names = {model or "in the box": model, against: against}
        raise typer.Exit(_compare(labelled, names, format, max_pages=max_pages, workers=workers, device=device))
    predictions = classifier.predict(labelled.paths, strategy=strategy, max_pages=max_pages, workers=workers)
    rows = list(tqdm(predictions, total=len(labelled), desc="evaluating", unit="doc", disable=None))
    read = [(p, label) for p, label in zip(rows, labelled.labels, strict=True) if p.error is None]
    errors = [p.error for p in rows if p.error is not None]
    for error in errors:
        print(f"{error.kind}: {error}", file=sys.stderr)
    if not read:
        fail("none of the documents could be read")
    scores = [[p.scores[name] for name in classifier.classes] for p, _ in read]
    figures = report(np.array(scores), [label for _, label in read], classifier.classes)
    if format is ReportFormat.json:
        print(json.dumps(figures.as_dict() | {"unreadable": len(errors)}, indent=2))
    else:
        print_report(figures, len(errors))
    if errors:
        raise typer.Exit(1)


def _compare(labelled: LabelledDocuments, names: dict[str, str | None], format: ReportFormat, **options: Any) -> int:
    """Prints models side by side; gives the command's exit status."""
    found = compare(names, labelled, **options)
    for error in found.errors:
        print(f"{error.kind}: {error}", file=sys.stderr)
    print(json.dumps(found.as_dict(), indent=2) if format is ReportFormat.json else found.markdown().rstrip())
    return 1 if found.errors else 0


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A document.", show_default=False)],
    model: Model = None,
    format: Annotated[ReportFormat, typer.Option(help="How the figures are written.")] = ReportFormat.table,
    max_pages: MaxPages = 64,
    timeout: Timeout = 60.0,
    device: Device = None,
) -> None:
    """Show what a model makes of a document's pages and what attention over them costs, predicted and measured.

    Exit status: 0 the file was read, 1 it was not, 2 wrong usage.
    """
    inspected = load_pretrained(model)
    place = choose_device(device)
    rendering = inspected.config.rendering
    (stack,) = read_documents([file], rendering, max_pages=max_pages, workers=1, timeout=timeout)
    if isinstance(stack, DocumentError):
        print(f"{stack.kind}: {stack}", file=sys.stderr)
        raise typer.Exit(1)
    found = inspect_document(inspected, stack, device=place)
    if format is ReportFormat.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print_inspection(found)
