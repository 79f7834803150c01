"""Classify documents: `python examples/classify.py [DOCUMENT ...]`, by default the sample documents."""

import sys

import docvit

paths = sys.argv[1:] or ["examples/documents/form.pdf", "examples/documents/broken.pdf"]

classifier = docvit.DocumentClassifier.from_pretrained()  # the bundled model; or a folder; or a hub id
for prediction in classifier.predict(paths):  # streams; a file that cannot be read yields .error and never raises
    if prediction.error:
        print(f"{prediction.path}: {prediction.error.kind}: {prediction.error.message}")
        continue
    page = max(prediction.pages, key=lambda page: page.relevance)
    evidence = f"{page.relevance:.0%} of the evidence on page {page.number}"
    print(f"{prediction.path}: {prediction.label} ({prediction.score:.0%}), {evidence}")
