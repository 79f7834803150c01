"""Size of the page that `docvit review` writes, and how long Chromium takes to open it.

    python examples/benchmarks/review_page.py DOCUMENTS --count 2000

Documents are repeated under other names until there are enough. Needs Chromium, which opens the page in a frame: its
own start does not count.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import docvit

FRAME = """<!doctype html><body><script>
const frame = document.createElement("iframe"), start = performance.now();
frame.style = "width: 1280px; height: 800px";
frame.src = "page.html";
frame.onload = () => { document.title = (performance.now() - start) / 1000; };
document.body.append(frame);
</script>"""


def seconds_to_open(chromium: str, frame: Path, profile: Path) -> float:
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--timeout=60000"]
    done = subprocess.run([chromium, *flags, "--dump-dom", frame.as_uri()], check=True, capture_output=True, text=True)
    return round(float(re.findall("<title>(.*)</title>", done.stdout)[0]), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--max-pages", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        parser.error("needs Chromium or Chrome on the PATH")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        links = [folder / f"{number}.pdf" for number in range(args.count)]
        for link, document in zip(links, islice(cycle(sorted(args.documents.rglob("*.pdf"))), args.count), strict=True):
            link.symlink_to(document.resolve())
        page, frame = folder / "page.html", folder / "frame.html"
        start = time.perf_counter()
        docvit.review(docvit.DocumentClassifier.from_pretrained(), links, page, max_pages=args.max_pages)
        made = time.perf_counter() - start
        frame.write_text(FRAME)
        measured = {
            "documents": args.count,
            "megabytes": round(page.stat().st_size / 1e6, 2),
            "seconds to make": round(made, 1),
            "seconds to open": [seconds_to_open(chromium, frame, folder / "profile") for _ in range(args.repeats)],
        }
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
