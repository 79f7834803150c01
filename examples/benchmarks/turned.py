"""Documents whose pages lie turned: what it costs, and how often an upright page is taken for a turned one.

    python examples/benchmarks/turned.py DOCUMENTS.csv --models runs --output results/turned.json

The model in runs/fold-K is judged on fold K of 5 of `docvit train --fold`, where there is one: up to 12 pages of each
document as they are, all turned by 90, 180 or 270 degrees, which is drawn per document, and turned without being turned
back. With words and by pixels.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
from folds import folds_of, parser_of

from docvit import DocumentClassifier
from docvit.data.labels import LabelledDocuments
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
    args = parser_of(__doc__).parse_args()
    rows: list[dict[str, Any]] = []
    for fold, folder, _, held_out in folds_of(args):
        classifier = DocumentClassifier.from_pretrained(folder)
        for words in (True, False):
            rows.append({"fold": fold, "words": words} | judge(classifier, held_out, words))
            print(rows[-1], flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
