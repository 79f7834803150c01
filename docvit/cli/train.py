"""`docvit train` and `docvit pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.entry import fail
from docvit.cli.output import print_last, print_passed_over, repeated_at_the_end
from docvit.model.variants import BASELINES

if TYPE_CHECKING:
    from docvit.data.labels import LabelledDocuments

# they warn of files that are passed over, and of documents that cannot be read
_LEAVING_OUT = ("docvit.data.labels", "docvit.training.rendering")


@app.command()
def train(
    context: typer.Context,
    data: options.LabelledData,
    output: options.Output,
    model: options.Variant = defaults.MODEL,
    init: options.Init = None,
    positions: options.Positions = None,
    scopes: options.Scopes = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"A page-independent baseline: {', '.join(BASELINES)}.")
    ] = None,
    page_size: options.PageSize = None,
    words: options.WordBuckets = None,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    epochs: options.Epochs = defaults.EPOCHS,
    lr: options.LearningRate = defaults.LEARNING_RATE,
    budget: options.Budget = defaults.BUDGET,
    max_pages: options.PagesSeen = defaults.MAX_PAGES,
    mix_pages: options.MixPages = defaults.MIX_PAGES,
    lose_words: options.LoseWords = defaults.LOSE_WORDS,
    word_dropout: options.WordDropout = defaults.WORD_DROPOUT,
    scans: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Share of the documents drawn as scanned copies.")
    ] = defaults.SCANS,
    packets: options.Packets = defaults.PACKETS,
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the target spread over all classes.")
    ] = defaults.LABEL_SMOOTHING,
    ema: options.EMA = defaults.EMA_DECAY,
    seed: options.Seed = 0,
    valid: options.Valid = None,
    group_by: options.GroupBy = None,
    fold: options.Fold = None,
    calibrated_like: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Models of other folds: what is unsure is taken from them. May be repeated."),
    ] = None,
    skip_unreadable: options.SkipUnreadable = False,
    password: options.Password = None,
    resume: options.Resume = False,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Train on labelled documents.

    Ctrl-C leaves a checkpoint that --resume continues exactly. What was passed over or left out is said at the end.
    """
    from docvit.data.augment import Augmentation
    from docvit.model.variants import with_baseline
    from docvit.training.loop import TrainSettings
    from docvit.training.recipe import Recipe
    from docvit.training.run_folder import read_recipe
    from docvit.training.supervised import train_documents

    read = options.words_options(context, no_words=False, ocr=ocr, ocr_pages=ocr_pages)
    given = {"positions": positions, "scopes": scopes, "page_size": page_size, "words": words}
    settings = {k: v for k, v in given.items() if v is not None}
    recipe = Recipe(
        model=model,
        init=init,
        settings=settings if baseline is None else with_baseline(baseline, settings),
        ocr_pages=read["ocr_pages"],
        max_pages=max_pages,
        mix_pages=mix_pages,
        lose_words=lose_words,
        word_dropout=word_dropout,
        packets=packets,
        label_smoothing=label_smoothing,
        budget=budget,
        ema=ema,
        augmentation=Augmentation(scan=scans),
        calibrated_like=calibrated_like,
        train=TrainSettings(epochs=epochs, lr=lr, seed=seed),
    )
    if resume:
        its = options.of_recipe(read_recipe(output))
        options.check_resumed(context, options.of_recipe(recipe), its, may_grow=("epochs",))
    running: dict[str, Any] = {"resume": resume, "epochs": options.more_epochs(context), "device": device}
    reading: dict[str, Any] = {"workers": workers, "password": password}
    with repeated_at_the_end(*_LEAVING_OUT):
        labelled, held_out = read_parts(data, valid, fold, group_by=group_by, **reading)
        running |= {"valid": held_out, "skip_unreadable": skip_unreadable}
        _, history = train_documents(labelled, output, recipe, **reading, **running)
        print_last(output, history)


@app.command()
def pretrain(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder of documents, or CSV with a column path; labels are not read.")],
    output: options.Output,
    model: options.Variant = defaults.MODEL,
    init: options.Init = None,
    positions: options.Positions = None,
    scopes: options.Scopes = None,
    page_size: options.PageSize = None,
    words: options.WordBuckets = None,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    epochs: options.Epochs = defaults.PRETRAIN_EPOCHS,
    lr: options.LearningRate = defaults.LEARNING_RATE,
    budget: options.Budget = defaults.PRETRAIN_BUDGET,
    max_pages: options.PagesSeen = defaults.MAX_PAGES,
    mask: Annotated[float, typer.Option(help="Share of the patches that are masked.")] = defaults.MASK,
    target: Annotated[
        str | None,
        typer.Option(
            help=f"What is predicted: {', '.join(defaults.TARGETS)} (default: ink with an ink stem, else pixels)."
        ),
    ] = None,
    seed: options.Seed = 0,
    password: options.Password = None,
    resume: options.Resume = False,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Pre-train on documents without labels.

    Masked patches are predicted from the visible ones. Train the result with `docvit train --init DIR`.

    Files that cannot be read are left out and listed. Ctrl-C leaves a checkpoint that --resume continues exactly.
    """
    from docvit.data.unlabelled import find_unlabelled
    from docvit.documents.finding import find_passed_over
    from docvit.training.masked import PretrainRecipe, pretrain_documents
    from docvit.training.run_folder import read_recipe

    read = options.words_options(context, no_words=False, ocr=ocr, ocr_pages=ocr_pages)
    given = {"positions": positions, "scopes": scopes, "page_size": page_size, "words": words}
    recipe = PretrainRecipe(
        model=model,
        init=init,
        settings={k: v for k, v in given.items() if v is not None},
        mask=mask,
        target=target,
        ocr_pages=read["ocr_pages"],
        max_pages=max_pages,
        budget=budget,
        train=replace(PretrainRecipe.train, epochs=epochs, lr=lr, seed=seed),
    )
    if resume:
        its = options.of_recipe(read_recipe(output, PretrainRecipe))
        options.check_resumed(context, options.of_recipe(recipe), its, may_grow=("epochs",))
    running: dict[str, Any] = {"resume": resume, "epochs": options.more_epochs(context), "device": device}
    reading: dict[str, Any] = {"workers": workers, "password": password}
    with repeated_at_the_end(*_LEAVING_OUT):
        _, history = pretrain_documents(find_unlabelled(data), output, recipe, **reading, **running)
        print_last(output, history)
    print_passed_over(find_passed_over([data]))


def read_parts(
    data: Path,
    valid: Path | None,
    fold: str | None,
    *,
    group_by: str | None,
    workers: int,
    password: str | None = None,
    classes: Sequence[str] = (),
) -> tuple[LabelledDocuments, LabelledDocuments | None]:
    """Documents to train on, and those to evaluate on, if any: `valid`, or the K-th of N folds of `data`.

    Raises:
        DataError: they cannot be used; it also names the files that cannot be read, so that one look shows everything.
    """
    from docvit.data.labels import DataError, read_labelled, split_groups

    if fold is not None and valid is not None:
        fail("--fold and --valid both choose the documents to evaluate on: give one of them")
    try:
        labelled = read_labelled(data, classes=classes, group_column=group_by)
    except DataError as error:
        unreadable = _unreadable(error.found, workers=workers, password=password)
        raise DataError(error.data, error.problems + unreadable) from None
    if fold is not None:
        return split_groups(labelled, *_parse_fold(fold))
    return labelled, read_labelled(valid, classes=labelled.classes) if valid is not None else None


def _unreadable(paths: Sequence[str], **reading: Any) -> list[str]:
    """A line for each document that cannot be read."""
    from tqdm import tqdm

    from docvit.documents.errors import DocumentError
    from docvit.documents.workers import read_documents

    read = read_documents(paths, max_pages=2, **reading)
    bar = tqdm(read, total=len(paths), desc="looking for more", unit="doc", leave=False, disable=None)
    return [f"{result.kind}: {result}" for result in bar if isinstance(result, DocumentError)]


def _parse_fold(fold: str) -> tuple[int, int]:
    """K/N as (K - 1, N)."""
    number, _, count = fold.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) and int(count) >= 2):
        fail(f"--fold {fold}: write K/N with K from 1 to N, such as 1/5")
    return int(number) - 1, int(count)
