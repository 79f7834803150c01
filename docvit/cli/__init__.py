"""The command line."""

from docvit.cli import classify, embed, evaluate, fit, review, sort, split, train  # noqa: F401
from docvit.cli.app import app
from docvit.cli.entry import run


def main() -> None:
    """Entry point of `docvit`."""
    run(app)
