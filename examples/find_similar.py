"""Near-duplicates and neighbours: `python examples/find_similar.py [DOCUMENT ...]`, by default the sample documents.

Two documents are alike as far as the cosine of their vectors is high, once the mean of all vectors is taken off.
"""

import sys

import numpy as np

import docvit

paths = sys.argv[1:] or [
    f"examples/documents/{name}.pdf" for name in ("assignment", "cheatsheet", "datasheet", "form", "paper", "report")
]

classifier = docvit.DocumentClassifier.from_pretrained()
vectors = classifier.embed(paths)  # one row per document; NaN where it could not be read
read = ~np.isnan(vectors).any(axis=1)
if not read.any():
    sys.exit("none of the documents could be read")
paths, vectors = [path for path, ok in zip(paths, read, strict=True) if ok], vectors[read]

vectors = vectors - vectors.mean(axis=0)  # what all of them share says nothing
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-9)
cosine = vectors @ vectors.T
np.fill_diagonal(cosine, -1)

for path, row in zip(paths, cosine, strict=True):
    nearest = row.argsort()[::-1][:3]
    print(path, "|", ", ".join(f"{paths[i]} ({row[i]:.2f})" for i in nearest))
for i, j in np.argwhere(np.triu(cosine > 0.99)):
    print("near-duplicates:", paths[i], paths[j])
