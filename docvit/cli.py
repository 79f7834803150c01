"""The commands: `docvit classify | train | evaluate`."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Generator
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from tqdm import tqdm

from docvit.classify import DocumentClassifier, Prediction
from docvit.console import fail, run
from docvit.data import LabelledDocuments, read_labelled
from docvit.explain import explain
from docvit.metrics import Report, report
from docvit.pages import DocumentError, find_documents
from docvit.positions import POSITIONS
from docvit.recipes import Recipe, read_recipe, split_groups, train_documents
from docvit.train import TrainSettings

app = typer.Typer(
    help="Classify multi-page documents with one vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COLUMNS = ("path", "label", "score", "num_pages", "pages_read", "error")


Rows = Generator[None, Prediction, None]


class RowFormat(str, Enum):
    table, jsonl, csv = "table", "jsonl", "csv"


class ReportFormat(str, Enum):
    table, json = "table", "json"


class RendererName(str, Enum):
    pdfium, poppler = "pdfium", "poppler"


Model = Annotated[str | None, typer.Option("--model", help="Model folder or hub id [default: the model in the box].")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [default: cuda if there is one]")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that render pages.")]
MaxPages = Annotated[
    int, typer.Option(min=1, help="Pages read of a long document, spread evenly, first and last always in.")
]


@app.command()
def classify(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files, or folders of files.", show_default=False)
    ],
    model: Model = None,
    format: Annotated[RowFormat, typer.Option(help="How rows are written.")] = RowFormat.table,
    explain_to: Annotated[
        Path | None, typer.Option("--explain", metavar="DIR", help="Draw what the model looked at, a PNG a document.")
    ] = None,
    max_pages: MaxPages = 64,
    renderer: Annotated[RendererName | None, typer.Option(help="Draw pages with this [default: the model's].")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which a document is given up.")] = 60.0,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Classify documents: one row a file, also for a file that cannot be read.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    classifier = DocumentClassifier.from_pretrained(model, device=device, renderer=renderer.value if renderer else None)
    found = find_documents(paths)
    if not found:
        fail(f"no documents in {', '.join(paths)}")
    predictions = classifier.predict(found, max_pages=max_pages, workers=workers, timeout=timeout)
    failed = 0
    writer = _writer(format, found)
    drawn: set[str] = set()
    # rows go to standard output, the bar to standard error: together on one terminal the bar would cut through rows
    bar = tqdm(predictions, total=len(found), unit="doc", disable=True if sys.stdout.isatty() else None)
    for prediction in bar:
        writer.send(prediction)
        failed += prediction.error is not None
        if explain_to is not None and prediction.error is None:
            name = _picture(prediction.path, drawn)
            _explain(classifier, prediction, explain_to / name, max_pages)
    if failed:
        raise typer.Exit(1)


def _picture(path: str, taken: set[str]) -> str:
    """A name that no other document of this command has; added to `taken`."""
    stem, number = Path(path).stem, 1
    while (name := f"{stem}.png" if number == 1 else f"{stem}-{number}.png") in taken:
        number += 1
    taken.add(name)
    return name


def _explain(classifier: DocumentClassifier, prediction: Prediction, file: Path, max_pages: int) -> None:
    try:
        explain(classifier, prediction.path, max_pages=max_pages).save(file)
    except DocumentError as error:  # read a moment ago, gone now
        logging.getLogger(__name__).warning("not explained: %s", error)


def _writer(format: RowFormat, paths: list[str]) -> Rows:
    """A started coroutine that writes each prediction sent to it as a row, at once."""
    writer = {RowFormat.table: _table, RowFormat.jsonl: _jsonl, RowFormat.csv: _csv}[format](paths)
    next(writer)
    return writer


def _jsonl(_: list[str]) -> Rows:
    while True:
        prediction = yield
        print(json.dumps(prediction.as_dict(), ensure_ascii=False), flush=True)


def _csv(_: list[str]) -> Rows:
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    while True:
        prediction = yield
        writer.writerow(prediction.as_dict() | {"error": str(prediction.error.kind) if prediction.error else ""})
        sys.stdout.flush()


def _table(paths: list[str]) -> Rows:
    width = min(60, max(len(path) for path in paths))
    print(f"{'path':<{width}}  {'label':<14} {'score':>5}  pages", flush=True)
    while True:
        prediction = yield
        path = prediction.path if len(prediction.path) <= width else "…" + prediction.path[1 - width :]
        if prediction.error is not None:
            print(f"{path:<{width}}  {prediction.error.kind}: {prediction.error.message}", flush=True)
            continue
        pages = str(prediction.num_pages)
        if prediction.pages_read != prediction.num_pages:
            pages = f"{prediction.pages_read} of {pages}"
        print(f"{path:<{width}}  {prediction.label:<14} {prediction.score:5.2f}  {pages}", flush=True)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with a sub folder a class, or CSV with path,label.")],
    model: Model = None,
    format: Annotated[ReportFormat, typer.Option(help="How the report is written.")] = ReportFormat.table,
    max_pages: MaxPages = 64,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Measure a model on labelled documents: accuracy, macro-F1, calibration, per class, confusion.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    classifier = DocumentClassifier.from_pretrained(model, device=device)
    labelled = read_labelled(data, classes=classifier.classes)
    predictions = classifier.predict(labelled.paths, max_pages=max_pages, workers=workers)
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
        _print_report(figures, len(errors))
    if errors:
        raise typer.Exit(1)


def _print_report(r: Report, unreadable: int) -> None:
    skipped = f", {unreadable} unreadable" if unreadable else ""
    print(f"{r.documents} documents{skipped}")
    print(f"accuracy {r.accuracy:.3f}   macro-F1 {r.macro_f1:.3f}   ECE {r.ece:.3f}   AURC {r.aurc:.3f}\n")
    width = max(len(name) for name in r.classes)
    print(f"{'class':<{width}}  precision  recall    F1  documents   predicted as (columns in the order of the rows)")
    for name, row in zip(r.classes, r.confusion, strict=True):
        c = r.per_class[name]
        cells = " ".join(f"{n:4d}" for n in row)
        print(
            f"{name:<{width}}  {c['precision']:9.2f}  {c['recall']:6.2f}  {c['f1']:4.2f}  {c['support']:9.0f}   {cells}"
        )


@app.command()
def train(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with a sub folder a class, or CSV with path,label.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the model folder is written.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="Variant to train from scratch.")] = Recipe.model,
    init: Annotated[str | None, typer.Option(metavar="timm:NAME|DIR", help="Start from these weights instead.")] = None,
    positions: Annotated[str | None, typer.Option(help=f"Positional scheme: {', '.join(POSITIONS)}.")] = None,
    scopes: Annotated[
        str | None, typer.Option(help="What blocks see: page, document, page-then-document:K, alternate:K.")
    ] = None,
    page_size: Annotated[int | None, typer.Option(min=16, help="Longer side of a page in px.")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = TrainSettings.epochs,
    lr: Annotated[float, typer.Option(min=0.0, help="Peak learning rate.")] = TrainSettings.lr,
    budget: Annotated[int, typer.Option(min=1, help="Tokens a batch, about.")] = Recipe.budget,
    max_pages: Annotated[int, typer.Option(min=1, help="Pages of a document seen in one epoch.")] = Recipe.max_pages,
    ema: Annotated[float, typer.Option(min=0, max=1, help="Decay of the moving average; 0 for none.")] = Recipe.ema,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    valid: Annotated[Path | None, typer.Option(help="Evaluate on these after every epoch.")] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="CSV column naming each document's source: balances them.")
    ] = None,
    fold: Annotated[
        str | None, typer.Option(metavar="K/N", help="Leave out the K-th of N folds of whole sources; evaluate there.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, under its own settings.")
    ] = False,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Train on labelled documents; Ctrl-C leaves a checkpoint that --resume continues exactly."""
    given = {"positions": positions, "scopes": scopes, "page_size": page_size}
    recipe = Recipe(
        model=model,
        init=init,
        settings={k: v for k, v in given.items() if v is not None},
        max_pages=max_pages,
        budget=budget,
        ema=ema,
        train=TrainSettings(epochs=epochs, lr=lr, seed=seed),
    )
    if resume:
        _check_resumed(context, recipe, read_recipe(output))
    if fold is not None and valid is not None:
        fail("--fold and --valid both say what to evaluate on: give one of them")
    labelled = read_labelled(data, group_column=group_by)
    held_out: LabelledDocuments | None = None
    if fold is not None:
        labelled, held_out = split_groups(labelled, *_parse_fold(fold))
    elif valid is not None:
        held_out = read_labelled(valid, classes=labelled.classes)
    _, history = train_documents(
        labelled, output, recipe, valid=held_out, resume=resume, device=device, workers=workers
    )
    last = "  ".join(f"{name} {value:.3g}" for name, value in history[-1].items())
    print(f"{output}: {last}")


def _parse_fold(fold: str) -> tuple[int, int]:
    number, _, count = fold.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) and int(count) >= 2):
        fail(f"--fold {fold}: write K/N with K from 1 to N, such as 1/5")
    return int(number) - 1, int(count)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _check_resumed(context: typer.Context, asked: Recipe, found: Recipe) -> None:
    """Settings given again on the command line must be those of the run."""
    of_recipe = {"model": "model", "init": "init", "max_pages": "max_pages", "budget": "budget", "ema": "ema"}
    of_loop = {"epochs": "epochs", "lr": "lr", "seed": "seed"}
    pairs = {n: (getattr(asked, f), getattr(found, f)) for n, f in of_recipe.items()}
    pairs |= {n: (getattr(asked.train, f), getattr(found.train, f)) for n, f in of_loop.items()}
    pairs |= {n: (asked.settings.get(n), found.settings.get(n)) for n in ("positions", "scopes", "page_size")}
    explicit = [n for n in pairs if _given(context, n)]
    differing = [n for n in explicit if pairs[n][0] != pairs[n][1]]
    if differing:
        told = ", ".join(f"--{n.replace('_', '-')} was {pairs[n][1]}" for n in differing)
        fail(f"the run to resume has other settings: {told}")


def main() -> None:
    """Entry point: whatever is wrong with the user's files ends in one line, never in a traceback."""
    run(app)
