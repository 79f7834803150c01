"""The entry points, and how commands end."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from typing import NoReturn

import typer

from docvit.errors import UserError


def fail(message: str) -> NoReturn:
    """Ends the command with status 2."""
    raise UserError(message)


def message_of(error: OSError) -> str:
    """What the system says about a file, without its number, and what to look at."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}: check the path, its permissions and the room on the disk"


def run(app: typer.Typer) -> NoReturn:
    """Runs a command line and ends the process.

    Status: 0 done, 1 some files failed or a bug, 2 wrong usage or data, 130 interrupted. An error is printed without
    its traceback, unless the environment has DOCVIT_DEBUG=1.
    """
    _replace_closed_streams()
    # Beside other processes, threads that spin while they wait for each other take most of each other's time. The
    # OpenMP library reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold what its encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app()  # raises SystemExit: 2 for wrong usage, 130 after Ctrl-C, 1 when its reader has gone (`| head`)
    except SystemExit as end:
        if end.code == 130:
            _end("interrupted", 130)
        raise
    except KeyboardInterrupt:
        _end("interrupted", 130)
    except UserError as error:
        _end(f"error: {error}", 2, error)
    except OSError as error:
        _end(f"error: {message_of(error)}", 2, error)
    except Exception as error:
        if _interrupted(error):
            _end("interrupted", 130)
        first_line = f": {error}".splitlines()[0] if str(error) else ""
        _end(f"unexpected {type(error).__name__}{first_line} (DOCVIT_DEBUG=1 shows the traceback)", 1, error)
    sys.exit(0)


def _end(message: str, status: int, error: Exception | None = None) -> NoReturn:
    if error is not None and os.environ.get("DOCVIT_DEBUG", "0") != "0":
        traceback.print_exception(error)
    print(message, file=sys.stderr)
    sys.exit(status)


def _interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is the cause: a module that it stops while it is imported may raise an error of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _replace_closed_streams() -> None:
    """A closed stream (`>&-`) becomes the null device: files opened later must not get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open until the process ends)
