"""Scanned copies of documents, and what a scan costs a model.

    python examples/benchmarks/scans.py DOCUMENTS.csv COPIES --models runs --output results/scans.json

Some pages of every document, spread evenly, are drawn at 1,100 px and printed, scanned and stored by a machine drawn
for it: turned by up to two degrees, grey or of 1 bit, faded, on grey paper, shadowed, blurred, noisy, with dark
borders, punch holes, the reverse shining through, as JPEG or fax. The copies are PDFs of images without text. All draws
depend on the document's content alone, so the set is the same for everybody. What lies in COPIES is not made again.

The model in runs/fold-K is judged on fold K of 5 of `docvit train --fold`, where there is one: the same pages of the
originals and of the copies, by pixels alone. With `--ocr-pages 1 2` the words of the copies' first page, and of the
first two, are read by OCR as well (`docvit[ocr]`; some seconds per page on a core). Shares nothing with the
augmentation of `docvit.data.scan_augment` but the idea.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from folds import folds_of, parser_of
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

import docvit
from docvit.data.metrics import report
from docvit.documents.errors import DocumentError
from docvit.documents.pages import spread

SIZE = 1100


def copy(page: Image.Image, behind: Image.Image, kind: np.random.Generator, noise: np.random.Generator) -> Image.Image:
    """One page as the machine that `kind` draws leaves it: pages of a document get equal generators."""
    grey, edge = page.convert("L"), int(kind.integers(150, 256))
    bilevel = kind.random() < 0.35
    if kind.random() < 0.3:
        reverse = np.asarray(behind.convert("L").resize(grey.size).transpose(Image.Transpose.FLIP_LEFT_RIGHT), float)
        grey = Image.fromarray(
            np.clip(np.asarray(grey) - kind.uniform(0.03, 0.15) * (255 - reverse), 0, 255).astype("u1")
        )
    grey = grey.rotate(kind.uniform(-2, 2) + noise.uniform(-0.3, 0.3), Image.Resampling.BICUBIC, fillcolor=edge)
    grey = grey.filter(ImageFilter.GaussianBlur(kind.uniform(0, 1.2)))
    pixels = np.asarray(grey, float) / 255
    paper, fade = kind.uniform(0.8, 1.0), kind.uniform(0, 0.45)
    pixels = paper * (1 - (1 - fade) * (1 - pixels))
    if not bilevel and kind.random() < 0.4:
        across, down = np.linspace(0, 1, pixels.shape[1])[None], np.linspace(0, 1, pixels.shape[0])[:, None]
        pixels = pixels * (1 - kind.uniform(0, 0.35) * (across if kind.random() < 0.5 else down))
    pixels = pixels + noise.normal(0, kind.uniform(0, 0.12), pixels.shape)
    if bilevel:  # between ink and paper, wherever these lie: nobody keeps a copy on which nothing can be read
        pixels = pixels > paper * (fade + (1 - fade) * kind.uniform(0.5, 0.8))
    scanned = Image.fromarray((np.clip(pixels, 0, 1) * 255).astype("u1"))
    draw, (width, height) = ImageDraw.Draw(scanned), scanned.size
    if kind.random() < 0.25:
        for y in (0.3, 0.7):
            draw.ellipse([0.03 * width, y * height - 12, 0.03 * width + 24, y * height + 12], fill=20)
    if kind.random() < 0.3:
        draw.rectangle([0, 0, kind.uniform(0.005, 0.04) * width, height], fill=25)
    if kind.random() < 0.2:
        draw.rectangle([0, height - kind.uniform(0.005, 0.03) * height, width, height], fill=25)
    if bilevel:
        return scanned.convert("1", dither=Image.Dither.NONE)
    file = io.BytesIO()
    scanned.save(file, "jpeg", quality=int(kind.integers(25, 80)))
    return Image.open(file)


def make_copy(path: str, target: Path, pages: int) -> None:
    with docvit.open_document(path, docvit.Rendering(size=SIZE, multiple=1, supersample=1)) as document:
        drawn = [document[i] for i in spread(len(document), pages)]
    seed = int.from_bytes(hashlib.sha256(Path(path).read_bytes()).digest()[:8], "big")
    noise = np.random.default_rng((seed, 1))
    copies = [
        copy(page, drawn[(n + 1) % len(drawn)], np.random.default_rng((seed, 0)), noise) for n, page in enumerate(drawn)
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    copies[0].save(target.with_suffix(".tmp"), "pdf", save_all=True, append_images=copies[1:], resolution=100)
    target.with_suffix(".tmp").rename(target)


def make_copies(paths: Sequence[str], folder: Path, pages: int) -> dict[str, str]:
    """The copy of each document that can be read, in the order of the paths."""
    copies = {}
    for path in tqdm(paths, desc="copies", unit="doc"):
        target = folder / f"{hashlib.sha256(path.encode()).hexdigest()[:16]}.pdf"
        try:
            if not target.is_file():
                make_copy(path, target, pages)
            copies[path] = str(target)
        except DocumentError as error:
            print(f"left out: {error}")
    return copies


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("copies", type=Path)
    parser.add_argument("--pages", type=int, default=4, help="pages per document (default: 4)")
    parser.add_argument("--ocr-pages", type=int, nargs="*", default=[], help="read so many pages of the copies by OCR")
    args = parser.parse_args()
    folds = list(folds_of(args))
    readings: dict[str, dict[str, Any]] = {"originals": {"words": False}, "copies": {"words": False}}
    readings |= {f"copies, OCR of {pages}": {"ocr_pages": pages} for pages in args.ocr_pages}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in readings}
    for fold, folder, _, held_out in folds:
        classifier = docvit.DocumentClassifier.from_pretrained(folder)
        copies = make_copies(held_out.paths, args.copies, args.pages)
        labels = [y for p, y in zip(held_out.paths, held_out.labels, strict=True) if p in copies]
        for name, reading in readings.items():
            paths = list(copies if name == "originals" else copies.values())
            found = list(classifier.predict(paths, max_pages=args.pages, **reading))
            scores = np.array([[p.scores.get(c, 0.0) for c in classifier.classes] for p in found])
            measured = report(scores, labels, classifier.classes)
            rows[name].append({"fold": fold, "accuracy": measured.accuracy, "macro_f1": measured.macro_f1})
            print(name, rows[name][-1], flush=True)
    table = {
        name: {
            metric: [statistics.fmean(v[metric] for v in values), statistics.stdev(v[metric] for v in values)]
            for metric in ("accuracy", "macro_f1")
        }
        for name, values in rows.items()
        if len(values) > 1
    }
    print(json.dumps(table, indent=2))
    if args.output:
        settings = {"pages": args.pages, "models": len(folds)}
        args.output.write_text(json.dumps({"settings": settings, "folds": rows, "mean and spread": table}, indent=1))


if __name__ == "__main__":
    main()
