"""Pages per second from PDF to a small page image, against pdf2image at 200 dpi and a resize.

    python examples/benchmarks/rendering.py FOLDER --limit 30 --repeats 3 --output results/rendering.json

Both ways read the same files in the same run, in one process and in two, in turns; medians over the repeats and their
ratio are given. Likeness is the correlation of a page with the reduction of a larger drawing of it (8 times, by the
same renderer), for 1, 2 and 4 times supersampling, over the first pages of the files. Needs poppler for the peer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from pdf2image import convert_from_path
from PIL import Image

from docvit.documents.errors import DocumentError
from docvit.documents.pages import open_document, read_document
from docvit.documents.rendering import Rendering

RENDERING = Rendering(size=224, supersample=2)
SUPERSAMPLES = (1, 2, 4)
REFERENCE = 8
PASSES = 4  # over the files for ours: a single pass is too short to be measured well


def ours(path: str) -> int:
    return len(read_document(path, RENDERING, max_pages=None).pages)


def peer(path: str) -> int:
    pages = [page.resize(RENDERING.fit(*page.size)) for page in convert_from_path(path, dpi=200)]
    return len([np.asarray(page) for page in pages])


def pages_per_second(read: Callable[[str], int], paths: list[str], processes: int) -> float:
    if processes == 1:
        started = time.perf_counter()
        return sum(map(read, paths)) / (time.perf_counter() - started)
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        pool.map(read, paths[:processes], chunksize=1)  # imports are not rendering
        started = time.perf_counter()
        return sum(pool.imap_unordered(read, paths)) / (time.perf_counter() - started)


def speed(paths: list[str], processes: int, repeats: int) -> dict[str, object]:
    runs: dict[str, list[float]] = {"ours": [], "pdf2image_200dpi": []}
    for _ in range(repeats):
        runs["ours"].append(pages_per_second(ours, paths * PASSES, processes))
        runs["pdf2image_200dpi"].append(pages_per_second(peer, paths, processes))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    return {"median": medians, "ratio": medians["ours"] / medians["pdf2image_200dpi"], "runs": runs}


def likeness(paths: list[str], pages: int = 3) -> dict[str, float]:
    """Mean correlation with the reference, by supersampling."""
    found: dict[int, list[float]] = {factor: [] for factor in SUPERSAMPLES}
    for path in paths:
        with open_document(path) as document:
            for index in range(min(pages, len(document))):
                drawn = {
                    factor: np.asarray(document.render(index, replace(RENDERING, supersample=factor, mode="L")), float)
                    for factor in (*SUPERSAMPLES, REFERENCE)
                }
                if drawn[REFERENCE].std() > 1:  # a blank page is like any other
                    for factor in SUPERSAMPLES:
                        found[factor].append(np.corrcoef(drawn[factor].ravel(), drawn[REFERENCE].ravel())[0, 1])
    return {f"{factor}x": statistics.fmean(values) for factor, values in found.items() if values}


def readable(paths: list[str], limit: int) -> list[str]:
    found = []
    for path in paths:
        try:
            with open_document(path):
                found.append(path)
        except DocumentError:
            continue  # the broken example
        if len(found) == limit:
            break
    return sorted(found, key=os.path.getsize, reverse=True)  # large ones first: no process waits for another's last


def machine() -> dict[str, object]:
    try:
        model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    poppler = subprocess.run(["pdftoppm", "-v"], capture_output=True, text=True, check=False).stderr.splitlines()[:1]
    packages = ("pypdfium2", "pdf2image", "pillow", "numpy")
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "poppler": poppler,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=str(Path(__file__).parents[1] / "documents"))
    parser.add_argument("--limit", type=int, default=30, help="how many PDFs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="where to write the JSON")
    options = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # the peer's pages are large
    paths = readable(sorted(map(str, Path(options.folder).rglob("*.pdf"))), options.limit)
    result = {
        "command": " ".join(["python", "examples/benchmarks/rendering.py", *sys.argv[1:]]),
        "machine": machine(),
        "documents": len(paths),
        "pages": sum(map(ours, paths)),  # also warms the file cache
        "size": RENDERING.size,
        "pages_per_second": {f"{n} process": speed(paths, n, options.repeats) for n in (1, 2)},
        "likeness": likeness(paths),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
