"""Pages per second from PDF to label, against the way it is usually done.

    python examples/benchmarks/pdf_to_label.py FOLDER --limit 50 --output results/pdf_to_label.json

The peer: pdf2image at 200 dpi, transformers' ViT image processor and ViT (width 384, depth 12, 6 heads, 224 px) on
every page, mean of the page logits. Ours: `DocumentClassifier.predict` with docvit_small_patch16, the same width,
depth, heads and page size. Both with random weights, on the same documents in the same run, in turns. Needs poppler and
`pip install transformers`.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from pdf2image import convert_from_path
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import docvit


def build_peer(classes: int) -> tuple[ViTImageProcessor, ViTForImageClassification]:
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, num_labels=classes
    )
    return ViTImageProcessor(), ViTForImageClassification(config).eval()


@torch.inference_mode()
def peer(processor: ViTImageProcessor, model: ViTForImageClassification, paths: list[str]) -> int:
    pages = 0
    for path in paths:
        images = convert_from_path(path, dpi=200)
        inputs = processor(images=images, return_tensors="pt")
        model(**inputs).logits.mean(0).argmax()
        pages += len(images)
    return pages


def ours(classifier: docvit.DocumentClassifier, paths: list[str]) -> int:
    return sum(p.pages_read or 0 for p in classifier.predict(paths))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = sorted(str(p) for p in arguments.folder.rglob("*.pdf") if p.stem != "broken")
    paths = random.Random(0).sample(found, min(arguments.limit, len(found)))
    processor, model = build_peer(8)
    classifiers = {
        scopes: docvit.DocumentClassifier(docvit.create_model("docvit_small_patch16", num_classes=8, scopes=scopes))
        for scopes in ("document", "page")
    }
    runs: dict[str, list[float]] = {"peer": [], **{f"docvit, scopes={s}": [] for s in classifiers}}
    for _ in range(arguments.repeats):
        for scopes, classifier in classifiers.items():
            started = time.perf_counter()
            pages = ours(classifier, paths)
            runs[f"docvit, scopes={scopes}"].append(pages / (time.perf_counter() - started))
        started = time.perf_counter()
        pages = peer(processor, model, paths)
        runs["peer"].append(pages / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in runs.items()}
    result = {
        "documents": len(paths),
        "pages": pages,
        "pages_per_second": {name: {"median": medians[name], "runs": values} for name, values in runs.items()},
        "ratio": {name: medians[name] / medians["peer"] for name in runs if name != "peer"},
        "bf16": classifiers["document"].bf16,
        "command": " ".join(["python", "examples/benchmarks/pdf_to_label.py", "FOLDER", *sys.argv[2:]]),
        "versions": {name: version(name) for name in ("torch", "timm", "transformers", "pypdfium2", "pdf2image")},
        "machine": {"platform": platform.platform(), "cores": torch.get_num_threads()},
    }
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
