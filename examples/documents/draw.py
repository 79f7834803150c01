"""Draw the specimen documents of this folder: one PDF of each class, and one broken file.

Run `python examples/documents/draw.py` (needs reportlab: `pip install ".[dev]"`). It takes a few seconds and gives the
same bytes each time. Every specimen is drawn by the module of its name, as vectors, with text made up for the purpose:
the companies, people, parts and music do not exist.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pen

FOLDER = Path(__file__).parent
CLASSES = ("assignment", "cheatsheet", "datasheet", "form", "paper", "report", "sheet_music", "slides")


def draw_all(folder: Path) -> None:
    """Write `<class>.pdf` for each class, and `broken.pdf`: the start of one, as a lost connection leaves it."""
    pen.load_fonts()
    for name in CLASSES:
        importlib.import_module(name).draw(folder / f"{name}.pdf")
    whole = (folder / "form.pdf").read_bytes()
    (folder / "broken.pdf").write_bytes(whole[: len(whole) // 5])


if __name__ == "__main__":
    draw_all(FOLDER)
