"""The command line application."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="Classify multi-page documents with one vision transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
