"""`docvit sort`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import app
from docvit.cli.entry import fail, message_of
from docvit.cli.output import print_folders, print_line, print_passed_over
from docvit.errors import in_one_line

if TYPE_CHECKING:
    from docvit.inference.sort import Predict, Row


@app.command()
def sort(
    context: typer.Context,
    into: Annotated[Path, typer.Option(metavar="DIR", help="Folder that gets a folder per label.")],
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="PATH...", help="Files, or folders of files.", show_default=False)
    ] = None,
    model: options.Model = None,
    min_score: options.MinScore = None,
    no_words: options.NoWords = False,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    password: options.Password = None,
    move: Annotated[
        bool, typer.Option("--move/--copy", help="Remove the originals, or leave them where they are.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Bring back what was sorted into DIR (from PATH..., if given).")
    ] = False,
) -> None:
    """Sort documents into a folder per label.

    Documents are copied, unless --move is given. Unsure and blank ones go to unsure/, those that cannot
    be read to unreadable/. Nothing is overwritten: where a name is taken, a number is added.

    DIR/docvit-sort.jsonl is the log. After an interruption, even a kill, the same command goes on and does nothing
    twice. --undo brings everything back.

    Exit status: 0 all were sorted, 1 some could not be read or sorted, 2 wrong usage.
    """
    folder = str(into)
    if undo:
        failed = _undo(folder, paths or [], dry_run=dry_run)
    elif not paths:
        fail("nothing to sort: name files or folders")
    else:
        words = options.words_options(context, no_words=no_words, ocr=ocr, ocr_pages=ocr_pages)
        load = partial(_load, model, **words, password=password, min_score=min_score)
        failed = _preview(folder, paths, load) if dry_run else _sort(folder, paths, load, move=move)
    if failed:
        raise typer.Exit(1)


Load = Callable[[], tuple["Predict", Sequence[str]]]


def _load(model: str | None, **reading: Any) -> tuple[Predict, Sequence[str]]:
    from docvit.inference.classify import DocumentClassifier

    classifier = DocumentClassifier.from_pretrained(model)
    return partial(classifier.predict, **reading), classifier.classes


def _preview(folder: str, paths: Sequence[str], load: Load) -> bool:
    """Whether something failed."""
    from docvit.inference.sort import find_to_sort, folder_names, preview
    from docvit.inference.sort_log import read_log

    documents, unfit = find_to_sort(paths, folder, read_log(folder).values())
    rows = _shown(unfit)
    if documents:
        predict, classes = load()
        rows += _shown(preview(documents, folder, predict, folder_names(classes)), len(documents))
    for row in rows:
        if row.target:
            print_line(f"{row.path} -> {os.path.join(folder, row.target)}")
    print_folders(os.path.dirname(row.target) for row in rows if row.target)
    _print_passed_over(paths, folder)
    return any(row.problem for row in rows)


def _sort(folder: str, paths: Sequence[str], load: Load, *, move: bool) -> bool:
    """Whether something failed."""
    from docvit.inference.sort import find_to_sort, folder_names, folders_in_use, resume, sort_documents
    from docvit.inference.sort_log import SortLog, read_log

    # an error here must come before the folder is made, and for nothing none is made
    documents, unfit = find_to_sort(paths, folder, read_log(folder).values())
    if not documents and not os.path.lexists(folder):
        _shown(unfit)
        _print_passed_over(paths, folder)
        print("nothing to sort")
        return bool(unfit)
    with _interruptible(), SortLog(folder) as log:
        before = len(folders_in_use(log))
        rows = _shown(resume(log))
        copied = sum(entry.state == "sorted" and not entry.move for entry in log.entries.values())
        documents, unfit = find_to_sort(paths, folder, log.entries.values())
        rows += _shown(unfit)
        if documents:
            predict, classes = load()
            sorting = sort_documents(log, documents, predict, folder_names(classes), move=move)
            rows += _shown(sorting, len(documents))
        in_use = folders_in_use(log)
    print_folders(in_use)
    now = f"{len(in_use) - before} {'moved' if move else 'copied (--move removes the originals)'}"
    anew = " to be sorted anew" if before else ""
    print(f"{now}, {before} before; docvit sort --into {folder} --undo brings them back{anew}")
    if move and copied:
        print(f"{copied} of these were copied and keep their originals: --undo first to move them")
    _print_passed_over(paths, folder)
    return any(row.problem for row in rows)


def _undo(folder: str, paths: Sequence[str], *, dry_run: bool) -> bool:
    """Whether something failed."""
    from docvit.documents.finding import SORT_LOG
    from docvit.inference.sort import resume, to_undo, undo_documents
    from docvit.inference.sort_log import SortLog, read_log

    if not os.path.exists(os.path.join(folder, SORT_LOG)):
        fail(f"nothing to undo: there is no {SORT_LOG} in {folder}")
    if dry_run:
        for entry in to_undo(read_log(folder).values(), paths):
            print_line(f"{os.path.join(folder, entry.target)} -> {entry.source}")
        return False
    with _interruptible(), SortLog(folder) as log:
        rows = _shown(resume(log, undo=True))
        entries = to_undo(log.entries.values(), paths)
        rows += _shown(undo_documents(log, entries), len(entries))
    print(f"brought back: {sum(row.target is not None for row in rows)}")
    return any(row.problem for row in rows)


def _shown(rows: Iterable[Row], total: int | None = None) -> list[Row]:
    """The rows, under a bar; what went wrong is printed at once."""
    from tqdm import tqdm

    found = []
    for row in tqdm(rows, total=total, unit="doc", disable=None if total else True):
        found.append(row)
        if row.problem:
            tqdm.write(in_one_line(f"{row.path}: {row.problem}"), file=sys.stderr)
    return found


def _print_passed_over(paths: Sequence[str], folder: str) -> None:
    from docvit.documents.finding import find_passed_over
    from docvit.inference.sort import canonical, lies_in

    print_passed_over([p for p in find_passed_over(paths) if not lies_in(canonical(p), canonical(folder))])


@contextmanager
def _interruptible() -> Iterator[None]:
    """For what is logged step by step: it may end at any moment, by Ctrl-C or where the log cannot be written."""
    try:
        yield
    except OSError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        logging.getLogger(__name__).warning("stopped: the same command goes on from here")
        raise
