"""Options that several commands share, `kd`'s among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from docvit.cli.entry import fail
from docvit.model.config import POSITIONS
from docvit.model.variants import baseline_of, list_variants
from docvit.training.masked import PretrainRecipe
from docvit.training.recipe import Recipe


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
