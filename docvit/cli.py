"""The commands: `docvit classify | evaluate | inspect | train | pretrain`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from tqdm import tqdm

from docvit.classify import DocumentClassifier, Prediction
from docvit.compare import compare
from docvit.console import fail, run
from docvit.data import DataError, LabelledDocuments, read_labelled
from docvit.explain import explain
from docvit.hardware import choose_device
from docvit.metrics import report
from docvit.pages import DocumentError, find_documents
from docvit.pool import read_documents
from docvit.positions import POSITIONS
from docvit.pretrain import TARGETS, PretrainRecipe, find_unlabelled, pretrain_documents
from docvit.recipes import Recipe, read_recipe, split_groups, train_documents
from docvit.rows import RowFormat, print_inspection, print_report, row_writer
from docvit.shapes import inspect_document
from docvit.strategies import STRATEGIES, get_strategy
from docvit.train import Record, TrainSettings
from docvit.variants import BASELINES, baseline_of, list_variants, with_baseline
from docvit.weights import load_pretrained

app = typer.Typer(
    help="Classify multi-page documents with one vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class ReportFormat(str, Enum):
    table, json = "table", "json"


class RendererName(str, Enum):
    pdfium, poppler = "pdfium", "poppler"


Model = Annotated[str | None, typer.Option("--model", help="Model folder or hub id (default: the model in the box).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that render pages.")]
Output = Annotated[Path, typer.Option(metavar="DIR", help="Where the model folder is written.")]
Variant = Annotated[
    str, typer.Option("--model", metavar="NAME", help=f"Variant to train from scratch: {', '.join(list_variants())}.")
]
Init = Annotated[str | None, typer.Option(metavar="timm:NAME|DIR", help="Start from these weights instead.")]
PositionsOption = Annotated[str | None, typer.Option("--positions", help=f"Positional scheme: {', '.join(POSITIONS)}.")]
Scopes = Annotated[str | None, typer.Option(help="What blocks see: page, document, page-then-document:K, alternate:K.")]
PageSize = Annotated[int | None, typer.Option(min=16, help="Longer side of a page in px.")]
LearningRate = Annotated[float, typer.Option("--lr", min=0.0, help="Peak learning rate.")]
Budget = Annotated[int, typer.Option(min=1, help="Tokens a batch, about.")]
PagesSeen = Annotated[int, typer.Option("--max-pages", min=1, max=64, help="Pages of a document seen in one epoch.")]
MixPages = Annotated[
    float, typer.Option(min=0, max=1, help="Share of documents with later pages of another source of their class.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
EMA = Annotated[float, typer.Option(min=0, max=1, help="Decay of the moving average; 0 for none.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="CSV column of sources, to balance and to tell apart; --fold needs it. Else each document is its own.",
    ),
]
Fold = Annotated[
    str | None, typer.Option(metavar="K/N", help="Leave out the K-th of N folds of whole sources; evaluate there.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --output, under its own settings.")]
MaxPages = Annotated[
    int, typer.Option(min=1, help="Pages read of a long document, spread evenly, first and last always in.")
]
Timeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which a document is given up.")]


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
    renderer: Annotated[RendererName | None, typer.Option(help="Draw pages with this (default: the model's).")] = None,
    timeout: Timeout = 60.0,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Classify documents: one row a file, also for a file that cannot be read.

    A folder stands for the documents in it; one of page images alone is one document.

    Put -- before names that begin with a dash.

    Exit status: 0 all files were read, 1 some were not, 2 wrong usage.
    """
    if explain_to is not None:
        explain_to.mkdir(parents=True, exist_ok=True)  # what is wrong with it shall be said before the first row
    classifier = DocumentClassifier.from_pretrained(model, device=device, renderer=renderer.value if renderer else None)
    found = find_documents(paths)
    predictions = classifier.predict(found, max_pages=max_pages, workers=workers, timeout=timeout)
    failed = 0
    writer = row_writer(format, found)
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


@app.command()
def train(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with a sub folder a class, or CSV with path,label.")],
    output: Output,
    model: Variant = Recipe.model,
    init: Init = None,
    positions: PositionsOption = None,
    scopes: Scopes = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"A page-independent baseline instead: {', '.join(BASELINES)}.")
    ] = None,
    page_size: PageSize = None,
    epochs: Annotated[int, typer.Option(min=1)] = TrainSettings.epochs,
    lr: LearningRate = TrainSettings.lr,
    budget: Budget = Recipe.budget,
    max_pages: PagesSeen = Recipe.max_pages,
    mix_pages: MixPages = Recipe.mix_pages,
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.99)] = Recipe.label_smoothing,
    ema: EMA = Recipe.ema,
    seed: Seed = 0,
    valid: Annotated[Path | None, typer.Option(help="Evaluate on these after every epoch.")] = None,
    group_by: GroupBy = None,
    fold: Fold = None,
    resume: Resume = False,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Train on labelled documents; Ctrl-C leaves a checkpoint that --resume continues exactly."""
    given = {"positions": positions, "scopes": scopes, "page_size": page_size}
    settings = {k: v for k, v in given.items() if v is not None}
    recipe = Recipe(
        model=model,
        init=init,
        settings=settings if baseline is None else with_baseline(baseline, settings),
        max_pages=max_pages,
        mix_pages=mix_pages,
        label_smoothing=label_smoothing,
        budget=budget,
        ema=ema,
        train=TrainSettings(epochs=epochs, lr=lr, seed=seed),
    )
    if resume:
        check_resumed(context, options_of(recipe), options_of(read_recipe(output)))
    labelled, held_out = read_parts(data, valid, fold, group_by=group_by, workers=workers)
    _, history = train_documents(
        labelled, output, recipe, valid=held_out, resume=resume, device=device, workers=workers
    )
    print_last(output, history)


@app.command()
def pretrain(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of documents, or CSV with a column path; labels are not read.")],
    output: Output,
    model: Variant = PretrainRecipe.model,
    init: Init = None,
    positions: PositionsOption = None,
    scopes: Scopes = None,
    page_size: PageSize = None,
    epochs: Annotated[int, typer.Option(min=1)] = PretrainRecipe.train.epochs,
    lr: LearningRate = PretrainRecipe.train.lr,
    budget: Budget = PretrainRecipe.budget,
    max_pages: PagesSeen = PretrainRecipe.max_pages,
    mask: Annotated[float, typer.Option(help="Share of the patches that are hidden.")] = PretrainRecipe.mask,
    target: Annotated[
        str | None,
        typer.Option(help=f"What is foreseen: {', '.join(TARGETS)}; by default ink behind an ink stem, else pixels."),
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Pre-train on documents without labels, for `docvit train --init DIR`, by foreseeing hidden patches.

    Files that cannot be read are left out and listed. Ctrl-C leaves a checkpoint that --resume continues exactly.
    """
    given = {"positions": positions, "scopes": scopes, "page_size": page_size}
    recipe = PretrainRecipe(
        model=model,
        init=init,
        settings={k: v for k, v in given.items() if v is not None},
        mask=mask,
        target=target,
        max_pages=max_pages,
        budget=budget,
        train=replace(PretrainRecipe.train, epochs=epochs, lr=lr, seed=seed),
    )
    if resume:
        check_resumed(context, options_of(recipe), options_of(read_recipe(output, PretrainRecipe)))
    _, history = pretrain_documents(
        find_unlabelled(data), output, recipe, resume=resume, device=device, workers=workers
    )
    print_last(output, history)


def print_last(output: Path, history: list[Record]) -> None:
    """The figures of the last epoch, in one line."""
    last = "  ".join(f"{name} {value:.3g}" for name, value in history[-1].items())
    print(f"{output}: {last}")


def read_parts(
    data: Path,
    valid: Path | None,
    fold: str | None,
    *,
    group_by: str | None,
    workers: int,
    classes: Sequence[str] = (),
) -> tuple[LabelledDocuments, LabelledDocuments | None]:
    """Documents to train on, and those to evaluate on, if any: `valid`, or the K-th of N folds of `data`.

    Raises:
        DataError: they cannot be used; then it also names the files that cannot be read, so that all is mended at once.
    """
    if fold is not None and valid is not None:
        fail("--fold and --valid both say what to evaluate on: give one of them")
    try:
        labelled = read_labelled(data, classes=classes, group_column=group_by)
    except DataError as error:
        read = read_documents(error.found, max_pages=2, workers=workers)
        ends = tqdm(read, total=len(error.found), desc="looking for more", unit="doc", leave=False, disable=None)
        unreadable = [f"{e.kind}: {e}" for e in ends if isinstance(e, DocumentError)]
        raise DataError(error.data, error.problems + unreadable) from None
    if fold is not None:
        return split_groups(labelled, *_parse_fold(fold))
    return labelled, read_labelled(valid, classes=labelled.classes) if valid is not None else None


def _parse_fold(fold: str) -> tuple[int, int]:
    """K/N as (K - 1, N)."""
    number, _, count = fold.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) and int(count) >= 2):
        fail(f"--fold {fold}: write K/N with K from 1 to N, such as 1/5")
    return int(number) - 1, int(count)


def _given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def check_resumed(context: typer.Context, mine: Mapping[str, Any], its: Mapping[str, Any]) -> None:
    """Settings given again on the command line, by the names of the options, must be those of the run."""
    explicit = [n for n in context.params if n in mine.keys() | its.keys() and _given(context, n)]
    differing = [n for n in explicit if mine.get(n) != its.get(n)]
    if differing:
        option = {p.name: p.opts[0] for p in context.command.params}
        told = ", ".join(f"{option[n]} was {its.get(n)}" for n in differing)
        fail(f"the run to resume has other settings: {told}")


def options_of(recipe: Recipe | PretrainRecipe) -> dict[str, Any]:
    """What a recipe holds, by the names of the options."""
    values = asdict(recipe)
    return {**values["settings"], **values["train"], **values, "baseline": baseline_of(recipe.settings)}


def main() -> None:
    """Entry point: whatever is wrong with the user's files ends in one line, never in a traceback."""
    run(app)
