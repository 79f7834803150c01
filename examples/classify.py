"""Classify documents from Python: run `python examples/classify.py [PATH ...]`."""

import sys
from pathlib import Path

import docvit

paths = sys.argv[1:] or sorted(str(p) for p in (Path(__file__).parent / "documents").glob("*.pdf"))

classifier = docvit.DocumentClassifier.from_pretrained()
for prediction in classifier.predict(paths):
    name = Path(prediction.path).name
    if prediction.error:
        print(f"{name}: {prediction.error.kind}: {prediction.error.message}")
        continue
    best = max(zip(prediction.page_relevance, prediction.pages, strict=True))
    print(
        f"{name}: {prediction.label} ({prediction.score:.2f}), said loudest by page {best[1]} of {prediction.num_pages}"
    )
