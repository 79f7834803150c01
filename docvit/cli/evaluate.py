"""`docvit evaluate` and `docvit inspect`."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.entry import fail
from docvit.cli.output import print_inspection, print_report, print_sureness

if TYPE_CHECKING:
    from docvit.data.labels import LabelledDocuments
    from docvit.inference.prediction import Prediction


class ReportFormat(str, Enum):
    table, json = "table", "json"


Format = Annotated[ReportFormat, typer.Option(help="How the report is written.")]


@app.command()
def evaluate(
    context: typer.Context,
    data: options.LabelledData,
    model: options.Model = None,
    against: Annotated[
        str | None, typer.Option(metavar="M", help="Compare with this second model, cost included.")
    ] = None,
    unknown: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Documents of kinds that the model does not know: does it say so?"),
    ] = None,
    min_score: options.MinScore = None,
    strategy: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"How page results become a document's: {', '.join(defaults.STRATEGIES)}."),
    ] = "document",
    format: Format = ReportFormat.table,
    max_pages: options.MaxPages = 64,
    no_words: options.NoWords = False,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    password: options.Password = None,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Measure a model on labelled documents.

    Prints accuracy, macro-F1, calibration, the results per class and the confusion matrix.

    ECE: mean distance between a score and how often such scores are right, 0 at best.

    AURC: error rate of the documents with the highest scores, averaged over how many are taken, 0 at best.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    reading: dict[str, Any] = {"max_pages": max_pages, "password": password, "workers": workers}
    reading |= options.words_options(context, no_words=no_words, ocr=ocr, ocr_pages=ocr_pages)
    import numpy as np
    from tqdm import tqdm

    from docvit.data.labels import read_labelled
    from docvit.data.metrics import report
    from docvit.documents.finding import find_documents
    from docvit.inference.classify import DocumentClassifier
    from docvit.inference.strategies import get_strategy

    get_strategy(strategy)  # an unknown name must not wait until a model is loaded
    if against is not None and (strategy != "document" or against == model or unknown or min_score is not None):
        fail("--against wants another model than --model, and no --strategy, --unknown or --min-score")
    classifier = DocumentClassifier.from_pretrained(model, device=device)
    labelled = read_labelled(data, classes=classifier.classes)
    if against is not None:
        names = {model or "bundled": model, against: against}
        raise typer.Exit(_compare(labelled, names, format, device=device, **reading))
    reading |= {"min_score": min_score, "strategy": strategy}
    predictions = classifier.predict(labelled.paths, **reading)
    rows = list(tqdm(predictions, total=len(labelled), desc="evaluating", unit="doc", disable=None))
    read = [(p, label) for p, label in zip(rows, labelled.labels, strict=True) if p.error is None]
    others = [] if unknown is None else list(classifier.predict(find_documents([unknown]), **reading))
    errors = [p.error for p in rows if p.error is not None]
    unread = [p.error for p in others if p.error is not None]
    for error in errors + unread:
        print(f"{error.kind}: {error}", file=sys.stderr)
    if not read or (others and len(unread) == len(others)):
        fail(f"none of the documents{' in --unknown' if read else ''} could be read")
    scores = [[p.scores[name] for name in classifier.classes] for p, _ in read]
    measured = report(np.array(scores), [label for _, label in read], classifier.classes)
    right = [p.label == classifier.classes[label] for p, label in read]
    sureness = _sureness([p for p, _ in read], right, [p for p in others if p.error is None])
    if format is ReportFormat.json:
        print(json.dumps(measured.as_dict() | sureness | {"unreadable": len(errors)}, indent=2))
    else:
        print_report(measured, len(errors))
        print_sureness(sureness)
    if errors or unread:
        raise typer.Exit(1)


def _sureness(known: list[Prediction], right: list[bool], unknown: list[Prediction]) -> dict[str, float | None]:
    """Shares of the documents that the model is sure of, and how well `known` tells unknown documents."""
    from sklearn.metrics import roc_auc_score

    sure = [hit for p, hit in zip(known, right, strict=True) if not p.unsure]
    values = {"coverage": len(sure) / len(known), "accuracy_of_sure": sum(sure) / len(sure) if sure else None}
    if not unknown:
        return values | {"known_auroc": None, "unknown_unsure": None}
    labels = [1] * len(known) + [0] * len(unknown)
    auroc = roc_auc_score(labels, [p.known for p in (*known, *unknown)])
    return values | {"known_auroc": float(auroc), "unknown_unsure": sum(p.unsure for p in unknown) / len(unknown)}


def _compare(labelled: LabelledDocuments, names: dict[str, str | None], format: ReportFormat, **reading: Any) -> int:
    """Prints a comparison of models; returns the command's exit status."""
    from docvit.evaluation.compare import compare

    found = compare(names, labelled, **reading)
    for error in found.errors:
        print(f"{error.kind}: {error}", file=sys.stderr)
    print(json.dumps(found.as_dict(), indent=2) if format is ReportFormat.json else found.markdown().rstrip())
    return 1 if found.errors else 0


@app.command()
def inspect(
    file: Annotated[str, typer.Argument(help="A document.", show_default=False)],
    model: options.Model = None,
    format: Format = ReportFormat.table,
    max_pages: options.MaxPages = 64,
    timeout: options.Timeout = 60.0,
    device: options.Device = None,
) -> None:
    """Show a document's tokens and their cost.

    The cost of attention over the tokens is predicted and measured. Of a model that reads words, their number per page
    and their share of the cost are shown.

    Exit status: 0 the file was read, 1 it was not, 2 wrong usage.
    """
    from docvit.documents.errors import DocumentError
    from docvit.documents.workers import read_documents
    from docvit.evaluation.cost import inspect_document
    from docvit.hardware import choose_device
    from docvit.model.docvit import DocViT

    inspected = DocViT.from_pretrained(model)
    where = choose_device(device)
    config = inspected.config
    reading: dict[str, Any] = {"max_pages": max_pages, "words": config.words > 0, "timeout": timeout}
    (stack,) = read_documents([file], config.rendering, workers=1, **reading)
    if isinstance(stack, DocumentError):
        print(f"{stack.kind}: {stack}", file=sys.stderr)
        raise typer.Exit(1)
    found = inspect_document(inspected, stack, device=where)
    if format is ReportFormat.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        print_inspection(found)
