"""Hand-made features on the folds of `docvit train --fold K/5`: the baseline a transformer has to beat.

    python examples/benchmarks/hog_baseline.py DOCUMENTS.csv --output results/hog_baseline.json

Histograms of oriented gradients (9 orientations, 32 px cells) and ink density (8 x 6 cells) of a 256 x 192 page; of the
first page, and their mean over the first eight; logistic regression and a random forest.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from docvit.data.labels import read_labelled
from docvit.documents.pages import read_document
from docvit.documents.rendering import Rendering

CELL, ORIENTATIONS = 32, 9
MODELS = {
    "logistic regression": lambda: make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)),
    "random forest": lambda: RandomForestClassifier(500, random_state=0),
}
FOLDS = {"StratifiedGroupKFold(5)": StratifiedGroupKFold(5), "GroupKFold(5)": GroupKFold(5)}


def describe_page(page: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> (480,)"""
    image = np.asarray(Image.fromarray(page).resize((192, 256), Image.Resampling.BILINEAR), np.float32) / 255
    down, across = np.gradient(image)
    magnitude = np.hypot(across, down)
    bins = (np.arctan2(down, across) % np.pi / np.pi * ORIENTATIONS).astype(int) % ORIENTATIONS
    cells = [(magnitude * (bins == k)).reshape(8, CELL, 6, CELL).sum((1, 3)) for k in range(ORIENTATIONS)]
    histogram = np.stack(cells, -1)  # (8, 6, 9)
    histogram /= np.linalg.norm(histogram, axis=2, keepdims=True) + 1e-2
    ink = (1 - image).reshape(8, CELL, 6, CELL).mean((1, 3))
    return np.concatenate([histogram.ravel(), ink.ravel()])


def describe(path: str, rendering: Rendering) -> np.ndarray:
    """(960,): the first page, and the mean of the first eight."""
    pages = [describe_page(page) for page in read_document(path, rendering, max_pages=None).pages[:8]]
    return np.concatenate([pages[0], np.mean(pages, 0)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--group-by", default="source_repo")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    rendering = Rendering(size=256, mode="L")
    features = np.array([describe(path, rendering) for path in tqdm(data.paths, desc="describing", unit="doc")])
    labels = np.array(data.labels)
    results: dict[str, Any] = {}
    for how, folds in FOLDS.items():
        for name, build in MODELS.items():
            predicted = np.zeros_like(labels)
            for train, test in folds.split(features, labels, data.groups):
                predicted[test] = build().fit(features[train], labels[train]).predict(features[test])
            macro = float(f1_score(labels, predicted, average="macro"))
            results.setdefault(how, {})[name] = {
                "accuracy": float(accuracy_score(labels, predicted)),
                "macro_f1": macro,
            }
    results["command"] = " ".join(["python", "examples/benchmarks/hog_baseline.py", "documents.csv", *sys.argv[2:]])
    results["versions"] = {name: version(name) for name in ("scikit-learn", "numpy", "pillow")}
    results["machine"] = platform.platform()
    print(json.dumps(results, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
