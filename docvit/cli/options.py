"""Options that several commands share, `kd`'s among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import docvit
from docvit.cli import defaults
from docvit.cli.entry import fail
from docvit.model.config import POSITIONS
from docvit.model.variants import list_variants

if TYPE_CHECKING:
    from docvit.training.masked import PretrainRecipe
    from docvit.training.recipe import Recipe


def _print_version(wanted: bool) -> None:
    if wanted:
        print(docvit.__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]

Model = Annotated[str | None, typer.Option("--model", help="Model folder or hub id (default: the bundled model).")]

Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")]

Workers = Annotated[int, typer.Option(min=0, help="Number of processes that render pages.")]

Paths = Annotated[list[str], typer.Argument(metavar="PATH...", help="Files, or folders of files.", show_default=False)]

LabelledData = Annotated[Path, typer.Argument(help="Folder with one subfolder per class, or CSV with path,label.")]

Output = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the model to.")]

Variant = Annotated[
    str, typer.Option("--model", metavar="NAME", help=f"Variant to train from scratch: {', '.join(list_variants())}.")
]

Init = Annotated[str | None, typer.Option(metavar="timm:NAME|DIR", help="Start from these weights instead.")]

Positions = Annotated[str | None, typer.Option("--positions", help=f"Positional scheme: {', '.join(POSITIONS)}.")]

Scopes = Annotated[str | None, typer.Option(help="What blocks see: page, document, page-then-document:K, alternate:K.")]

PageSize = Annotated[int | None, typer.Option(min=16, help="Longer side of a page in pixels.")]

Epochs = Annotated[int, typer.Option(min=1, help="Passes over the documents.")]

LearningRate = Annotated[float, typer.Option("--lr", min=0.0, help="Peak learning rate.")]

Budget = Annotated[int, typer.Option(min=1, help="Approximate number of tokens per batch.")]

PagesSeen = Annotated[int, typer.Option("--max-pages", min=1, max=64, help="Pages of a document seen per epoch.")]

MixPages = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Share of documents whose later pages come from another document of the same class and another source.",
    ),
]

Seed = Annotated[int, typer.Option(min=0, help="Random seed.")]

EMA = Annotated[float, typer.Option(min=0, max=1, help="Decay of the moving average of the weights; 0 for none.")]

Valid = Annotated[Path | None, typer.Option(metavar="DATA", help="Evaluate on these documents after every epoch.")]

GroupBy = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="CSV column that names the source of each document, for balancing, --mix-pages and --fold "
        "(default: every document is a source of its own).",
    ),
]

Fold = Annotated[
    str | None, typer.Option(metavar="K/N", help="Hold out fold K of N and evaluate on it. Sources stay whole.")
]

Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --output, with its own settings.")]

MaxPages = Annotated[
    int,
    typer.Option(min=1, help="Read at most this many pages of a document, evenly spread, the first and last included."),
]

Timeout = Annotated[
    float,
    typer.Option(
        min=0.1,
        help=f"Seconds after which a document is given up; --ocr adds {defaults.OCR_SECONDS:g} for each of its pages.",
    ),
]

MinScore = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Documents whose score * known is lower are unsure (default: the model's own)."),
]

Password = Annotated[str | None, typer.Option(help="Opens PDFs that have this password.")]

NoWords = Annotated[bool, typer.Option("--no-words", help="Pixels alone, also for a model that reads words.")]

OCR = Annotated[bool, typer.Option("--ocr", help='Read pages without a text layer by OCR: pip install "docvit[ocr]".')]

OCRPages = Annotated[
    int, typer.Option("--ocr-pages", min=1, help="Number of pages that --ocr may read, from the first.")
]

SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out documents that cannot be read, and list them.")
]

WordBuckets = Annotated[
    int | None,
    typer.Option(
        "--words",
        metavar="BUCKETS",
        min=0,
        help="Read the words of PDFs, hashed to so many buckets, such as 16384; 0 for pixels alone "
        "(default: the model's).",
    ),
]

Packets = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        min=0,
        help="Learn where documents begin in a file of several (docvit split), from so many packets glued from the "
        "documents, as a share of their number, such as 1.",
    ),
]

LoseWords = Annotated[
    float, typer.Option(min=0, max=1, help="Share of documents that lose all their words, as if they were scans.")
]

WordDropout = Annotated[
    float, typer.Option(min=0, max=1, help="Largest share of a document's words that are dropped one by one.")
]


def words_options(context: typer.Context, *, no_words: bool, ocr: bool, ocr_pages: int) -> dict[str, Any]:
    """--no-words, --ocr and --ocr-pages as options of `DocumentClassifier.predict`.

    Raises:
        UserError: they contradict each other, or the extra for OCR is not installed.
    """
    if ocr and no_words:
        fail("--ocr reads words and --no-words leaves them out: give one of them")
    if not ocr:
        if is_given(context, "ocr_pages"):
            fail("--ocr-pages says of how many pages --ocr reads the words: give --ocr, too")
        return {"words": not no_words, "ocr_pages": 0}
    from docvit.documents.ocr import require_ocr

    try:
        require_ocr()
    except ModuleNotFoundError as error:
        fail(str(error))
    return {"words": True, "ocr_pages": ocr_pages}


def is_given(context: typer.Context, name: str) -> bool:
    """Whether the option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def more_epochs(context: typer.Context) -> int | None:
    """The epochs given on the command line, for a run that is resumed to go on for longer."""
    return int(context.params["epochs"]) if context.params["resume"] and is_given(context, "epochs") else None


def check_resumed(
    context: typer.Context, mine: Mapping[str, Any], its: Mapping[str, Any], *, may_grow: tuple[str, ...] = ()
) -> None:
    """Settings given again on the command line, by the names of the options, must be those of the run."""
    explicit = [n for n in context.params if n in mine.keys() | its.keys() and is_given(context, n)]
    differing = [n for n in explicit if mine.get(n) != its.get(n) and not (n in may_grow and mine[n] > its[n])]
    if differing:
        option = {p.name: p.opts[0] for p in context.command.params}
        fail(f"the run to resume has other settings: {', '.join(f'{option[n]} was {its.get(n)}' for n in differing)}")


def of_recipe(recipe: Recipe | PretrainRecipe) -> dict[str, Any]:
    """The settings of a recipe by the names of the options."""
    from docvit.model.variants import baseline_of

    values = asdict(recipe)
    more = {"baseline": baseline_of(recipe.settings), "scans": recipe.augmentation.scan, "ocr": recipe.ocr_pages > 0}
    return {**values["settings"], **values["train"], **values, **more}
