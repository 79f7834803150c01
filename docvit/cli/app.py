"""The command line application.

Modules of commands import neither torch nor anything that does: a command imports what it needs when it runs.
"""

from __future__ import annotations

from functools import partial

import typer

from docvit.cli import options

Application = partial(
    typer.Typer,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # an error stays in one line, and starting is faster
)

app = Application()


@app.callback()
def docvit(version: options.Version = False) -> None:
    """Classify multi-page documents with one vision transformer."""
