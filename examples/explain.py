"""See what a label rests on: `python examples/explain.py [DOCUMENT [PICTURE.png]]`."""

import sys

import numpy as np

import docvit

document = sys.argv[1] if len(sys.argv) > 1 else "examples/documents/datasheet.pdf"
picture = sys.argv[2] if len(sys.argv) > 2 else "runs/explained.png"

classifier = docvit.DocumentClassifier.from_pretrained()
explanation = docvit.explain(classifier, document)
explanation.save(picture)  # the pages, evidence for the label in red

print(f"{document}: {explanation.prediction.label} ({explanation.prediction.score:.0%})")
for number, relevance in zip(explanation.prediction.pages, explanation.relevance, strict=True):
    row, col = np.unravel_index(np.nanargmax(relevance), relevance.shape)  # NaN: a blank patch, left out
    print(f"  page {number}: strongest patch in row {row + 1}, column {col + 1} of {relevance.shape}")
print(f"see {picture}")
