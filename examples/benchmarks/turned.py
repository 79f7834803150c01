"""Documents whose pages lie turned: what it costs, and how often an upright page is taken for a turned one.

    python examples/benchmarks/turned.py DOCUMENTS.csv --models runs/fold-1 runs/fold-2 runs/fold-3 runs/fold-4 \\
        runs/fold-5 --output results/turned.json

Model k of n is judged on fold k of n of `docvit train --fold`: up to 12 pages of each document as they are, all turned
by 90, 180 or 270 degrees, which is drawn per document, and turned without being turned back. With words and by pixels.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from docvit import DocumentClassifier, read_labelled
from docvit.data.labels import LabelledDocuments, split_groups
from docvit.documents.cache import CachedDocument, PageCache, default_cache
from docvit.documents.words import Words

PAGES = 12


def judge(classifier: DocumentClassifier, data: LabelledDocuments, words: bool) -> dict[str, float]:
    """Accuracies, and shares of pages that are turned rightly and wrongly."""
    cache = PageCache(default_cache(), classifier.rendering, words=True)
    files, _ = cache.prepare(data.paths)
    random, right, found = np.random.default_rng(0), [], []
    for path, label in zip(data.paths, data.labels, strict=True):
        if path not in files:
            continue
        document = CachedDocument.open(files[path])
        stack = document.load(document.indices[:PAGES])
        stack = stack if words else stack._replace(words=[Words() for _ in stack.words])
        quarters = int(random.integers(1, 4))
        lying = stack.turn([quarters] * len(stack.pages))
        as_they_are, upright = classifier.classify_pages([stack])[0], classifier.classify_pages([lying])[0]
        classifier.model.turns, head = None, classifier.model.turns
        raw = classifier.classify_pages([lying])[0]
        classifier.model.turns = head
        right.append([row.label == data.classes[label] for row in (as_they_are, upright, raw)])
        found += [(page.turned == 90 * quarters, quarters) for page in upright.pages]
        found += [(page.turned == 0, 0) for page in as_they_are.pages]
    accuracy = dict(zip(("upright", "turned", "not turned back"), np.mean(right, 0).tolist(), strict=True))
    return accuracy | {
        f"pages at {90 * q} judged right": statistics.fmean(hit for hit, own in found if own == q) for q in range(4)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--models", nargs="+", required=True, help="the models of folds 1 to n, in order")
    parser.add_argument("--group-by", default="group")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    data = read_labelled(args.data, group_column=args.group_by)
    rows: list[dict[str, Any]] = []
    for k, folder in enumerate(args.models):
        classifier = DocumentClassifier.from_pretrained(folder)
        for words in (True, False):
            measured = judge(classifier, split_groups(data, k, len(args.models))[1], words)
            rows.append({"fold": k + 1, "words": words} | measured)
            print(rows[-1], flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
