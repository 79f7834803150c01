"""The entry points, and how commands end."""

from __future__ import annotations

import io
import logging
import sys
from typing import NoReturn

import typer

from docvit.data.labels import DataError
from docvit.documents.errors import DocumentError
from docvit.model.pretrained import ModelError
from docvit.training.loop import TrainingError


class UsageError(Exception):
    """Something the user asked for that cannot be done; ends a command with status 2."""


def fail(message: str) -> NoReturn:
    raise UsageError(message)


def run(app: typer.Typer) -> NoReturn:
    """Runs a command line. Status: 0 done, 1 some files failed, 2 wrong usage or data, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold what its encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()  # leaves by SystemExit: 2 for wrong usage, 130 after Ctrl-C, 1 when its reader has gone (`| head`)
    except (UsageError, DataError, DocumentError, ModelError, TrainingError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)
