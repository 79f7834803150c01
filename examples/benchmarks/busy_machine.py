"""How much longer training and classification take beside busy processes.

    python examples/benchmarks/busy_machine.py --busy 2 --runs 3

Draws documents, then times `docvit train` (seconds per epoch of each model) and `docvit classify` (seconds of the whole
command) in turn alone and beside `--busy` processes that never rest, and prints medians and their ratio. Run it on a
machine that does nothing else.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from classify_memory import draw_pdf

DOCVIT = "from docvit.cli import main; main()"


def draw_documents(folder: Path, count: int) -> None:
    """Two classes that differ in their number of pages; the content does not matter here."""
    for kind, pages in (("short", 2), ("long", 6)):
        (folder / kind).mkdir(parents=True)
        for i in range(count // 2):
            draw_pdf(folder / kind / f"{i}.pdf", pages + i % 2)
            with (folder / kind / f"{i}.pdf").open("ab") as file:
                file.write(b"%% %d\n" % i)  # no two files are copies


def docvit(*arguments: object) -> None:
    subprocess.run([sys.executable, "-c", DOCVIT, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def epoch_seconds(data: Path, model: str, *options: object) -> float:
    with tempfile.TemporaryDirectory() as folder:
        docvit("train", data, "--output", folder, "--model", model, "--epochs", 1, "--device", "cpu", *options)
        with (Path(folder) / "metrics.csv").open() as file:
            return float(next(csv.DictReader(file))["seconds"])


def classify_seconds(data: Path) -> float:
    begun = time.perf_counter()
    docvit("classify", data, "--device", "cpu")
    return time.perf_counter() - begun


@contextmanager
def busy(count: int) -> Iterator[None]:
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--models", nargs="+", default=["docvit_linear_patch32", "docvit_compact_patch32"])
    parser.add_argument("--busy", type=int, default=2, help="number of busy processes")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        draw_documents(data, arguments.documents)
        tasks: dict[str, Callable[[], float]] = {
            model: lambda model=model: epoch_seconds(data, model) for model in arguments.models
        }
        tasks["classify"] = lambda: classify_seconds(data)
        for name, task in tasks.items():
            task()  # renders the pages, fills the disk's cache
            alone, beside = [], []
            for _ in range(arguments.runs):
                alone.append(task())
                with busy(arguments.busy):
                    beside.append(task())
            a, b = statistics.median(alone), statistics.median(beside)
            spread = f"{min(alone):.1f}-{max(alone):.1f}, {min(beside):.1f}-{max(beside):.1f}"
            print(f"{name:<24} alone {a:6.1f} s  busy {b:6.1f} s  ratio {b / a:5.2f}  ({spread})", flush=True)


if __name__ == "__main__":
    main()
