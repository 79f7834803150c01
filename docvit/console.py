"""What all commands share: how they end."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import typer

from docvit.data import DataError
from docvit.pages import DocumentError
from docvit.train import TrainingError
from docvit.weights import ModelError


class UsageError(Exception):
    """Something the user asked for that cannot be done; ends a command with status 2."""


def fail(message: str) -> NoReturn:
    raise UsageError(message)


def run(app: typer.Typer) -> NoReturn:
    """Runs a command line. Status: 0 done, 1 some files failed, 2 wrong usage or data, 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        app()  # leaves by SystemExit, with status 2 for wrong usage and 130 after Ctrl-C
    except (UsageError, DataError, DocumentError, ModelError, TrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `docvit classify ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(0)
