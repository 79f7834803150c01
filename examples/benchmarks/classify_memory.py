"""Peak memory of `docvit classify` on a long PDF against that on a short one (Linux).

    python examples/benchmarks/classify_memory.py --output results/classify_memory.json

Draws both PDFs, classifies each in a process of its own, and samples the memory of that process and its workers
(proportional set size, so that shared pages count once) every 20 ms.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


def draw_pdf(file: Path, pages: int) -> None:
    """A valid PDF of `pages` pages, each with strokes of its own."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    for page in range(pages):
        lines = "\n".join(f"72 {y} m {180 + (page * 37 + y * 13) % 360} {y} l S" for y in range(80, 720, 18))
        content = f"3 w\n{lines}".encode()
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
        box = f"/MediaBox [0 0 612 792] /Contents {len(objects)} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R {box} >>".encode())
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Count {pages} /Kids [{' '.join(kids)}] >>".encode()
    data, offsets = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    file.write_bytes(data)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [t.name for t in Path(f"/proc/{pid}/task").iterdir() if t.name != str(pid)]
        for thread in threads:
            children += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    except OSError:
        return []
    return [pid] + [p for child in children for p in tree(int(child))]


def memory(pid: int) -> int:
    """Bytes."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")), 0)


def peak(file: Path) -> tuple[int, str]:
    """Peak bytes of classifying `file`, and its row."""
    command = [sys.executable, "-c", "from docvit.cli import main; main()", "classify", str(file), "--format", "jsonl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    highest = 0
    while process.poll() is None:
        highest = max(highest, sum(map(memory, tree(process.pid))))
        time.sleep(0.02)
    assert process.stdout is not None
    return highest, process.stdout.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    peaks: dict[int, list[float]] = {64: [], arguments.pages: []}
    with tempfile.TemporaryDirectory() as folder:
        for pages in peaks:
            draw_pdf(Path(folder) / f"{pages}.pdf", pages)
        for _ in range(arguments.runs):
            for pages, found in peaks.items():
                highest, row = peak(Path(folder) / f"{pages}.pdf")
                assert json.loads(row)["num_pages"] == pages, row
                found.append(highest / 1e6)
    medians = {pages: sorted(found)[len(found) // 2] for pages, found in peaks.items()}
    result = {
        "peak_MB": {str(pages): {"median": medians[pages], "runs": found} for pages, found in peaks.items()},
        "difference_MB": medians[arguments.pages] - medians[64],
        "command": "python examples/benchmarks/classify_memory.py",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "machine": {"platform": platform.platform(), "cores": torch.get_num_threads()},
    }
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
