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
    best = max(prediction.pages, key=lambda page: page.relevance or 0)
    print(
        f"{name}: {prediction.label} ({prediction.score:.2f}), most evidence on page {best.number} of "
        f"{prediction.num_pages}"
    )
