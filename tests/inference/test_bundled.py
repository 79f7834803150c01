"""What the bundled model says of the sample documents, and where its page relevance comes from."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from conftest import EXAMPLES

from docvit.documents.pages import read_document
from docvit.inference.classify import DocumentClassifier

CLASSES = (
    "assignment",
    "brochure",
    "cheatsheet",
    "contract",
    "datasheet",
    "form",
    "invoice",
    "manual",
    "minutes",
    "news",
    "paper",
    "report",
    "resume",
    "sheet_music",
    "slides",
    "thesis",
)

# Probabilities of CLASSES for each document. Other weights have others: look at every change before writing it here.
GOLDEN = {
    "assignment": [
        0.948,
        0.000,
        0.001,
        0.000,
        0.000,
        0.009,
        0.002,
        0.001,
        0.001,
        0.000,
        0.001,
        0.014,
        0.000,
        0.021,
        0.001,
        0.001,
    ],
    "cheatsheet": [
        0.000,
        0.002,
        0.988,
        0.000,
        0.001,
        0.000,
        0.002,
        0.000,
        0.000,
        0.000,
        0.000,
        0.000,
        0.000,
        0.005,
        0.001,
        0.000,
    ],
    "datasheet": [
        0.000,
        0.000,
        0.004,
        0.000,
        0.959,
        0.001,
        0.003,
        0.005,
        0.002,
        0.000,
        0.000,
        0.020,
        0.001,
        0.004,
        0.001,
        0.000,
    ],
    "form": [
        0.001,
        0.001,
        0.002,
        0.000,
        0.004,
        0.980,
        0.003,
        0.004,
        0.000,
        0.000,
        0.000,
        0.000,
        0.000,
        0.005,
        0.000,
        0.000,
    ],
    "paper": [
        0.012,
        0.003,
        0.012,
        0.013,
        0.014,
        0.002,
        0.001,
        0.001,
        0.010,
        0.011,
        0.829,
        0.057,
        0.001,
        0.033,
        0.002,
        0.001,
    ],
    "report": [
        0.018,
        0.108,
        0.003,
        0.015,
        0.006,
        0.003,
        0.002,
        0.027,
        0.028,
        0.004,
        0.002,
        0.770,
        0.002,
        0.003,
        0.007,
        0.004,
    ],
    "sheet_music": [
        0.002,
        0.000,
        0.000,
        0.002,
        0.000,
        0.001,
        0.000,
        0.000,
        0.001,
        0.000,
        0.000,
        0.002,
        0.000,
        0.990,
        0.001,
        0.000,
    ],
    "slides": [
        0.001,
        0.021,
        0.004,
        0.001,
        0.000,
        0.001,
        0.000,
        0.003,
        0.000,
        0.001,
        0.000,
        0.001,
        0.000,
        0.001,
        0.964,
        0.000,
    ],
}

# The same by pixels alone, by which the report is taken for a manual.
PIXELS = {
    "assignment": [
        0.312,
        0.005,
        0.014,
        0.006,
        0.077,
        0.143,
        0.016,
        0.136,
        0.040,
        0.003,
        0.007,
        0.179,
        0.003,
        0.036,
        0.001,
        0.022,
    ],
    "cheatsheet": [
        0.000,
        0.033,
        0.897,
        0.001,
        0.002,
        0.007,
        0.020,
        0.002,
        0.001,
        0.001,
        0.000,
        0.000,
        0.002,
        0.029,
        0.006,
        0.000,
    ],
    "datasheet": [
        0.008,
        0.001,
        0.006,
        0.003,
        0.738,
        0.111,
        0.030,
        0.015,
        0.010,
        0.005,
        0.002,
        0.056,
        0.001,
        0.012,
        0.001,
        0.001,
    ],
    "form": [
        0.001,
        0.003,
        0.013,
        0.001,
        0.150,
        0.787,
        0.015,
        0.006,
        0.001,
        0.001,
        0.000,
        0.001,
        0.001,
        0.018,
        0.000,
        0.000,
    ],
    "paper": [
        0.019,
        0.007,
        0.022,
        0.026,
        0.055,
        0.045,
        0.001,
        0.018,
        0.072,
        0.082,
        0.601,
        0.019,
        0.002,
        0.029,
        0.001,
        0.001,
    ],
    "report": [
        0.021,
        0.168,
        0.013,
        0.117,
        0.029,
        0.060,
        0.010,
        0.363,
        0.048,
        0.067,
        0.005,
        0.029,
        0.037,
        0.004,
        0.009,
        0.019,
    ],
    "sheet_music": [
        0.001,
        0.000,
        0.000,
        0.003,
        0.002,
        0.003,
        0.000,
        0.001,
        0.001,
        0.001,
        0.000,
        0.002,
        0.000,
        0.984,
        0.001,
        0.000,
    ],
    "slides": [
        0.001,
        0.017,
        0.024,
        0.003,
        0.003,
        0.001,
        0.000,
        0.015,
        0.000,
        0.001,
        0.001,
        0.005,
        0.000,
        0.002,
        0.925,
        0.001,
    ],
}


@cache
def classifier():
    return DocumentClassifier.from_pretrained(device="cpu")


@cache
def predictions():
    paths = [EXAMPLES / "documents" / f"{name}.pdf" for name in GOLDEN]
    return dict(zip(GOLDEN, classifier().predict(paths, workers=0), strict=True))


def page_probabilities(name):
    """(pages, C) softmax of what the head makes of each page token, in float32."""
    model, path = classifier().model, EXAMPLES / "documents" / f"{name}.pdf"
    with torch.no_grad():
        features = model.forward_features(model.pack([read_document(path, classifier().rendering, words=True)]))
        return model.forward_pages(features).softmax(1)


@pytest.mark.parametrize("name", GOLDEN)
def test_label_and_probabilities_of_a_sample_document(name):
    found = predictions()[name]
    assert found.label == name
    assert [found.scores[label] for label in CLASSES] == pytest.approx(GOLDEN[name], abs=0.02)


def test_probabilities_by_pixels_alone():
    paths = [EXAMPLES / "documents" / f"{name}.pdf" for name in PIXELS]
    for name, found in zip(PIXELS, classifier().predict(paths, workers=0, words=False), strict=True):
        assert [found.scores[label] for label in CLASSES] == pytest.approx(PIXELS[name], abs=0.02)


@pytest.mark.parametrize("name", GOLDEN)
def test_page_relevance_is_the_share_of_the_predicted_class_in_the_page_tokens(name):
    of_label = page_probabilities(name)[:, CLASSES.index(name)].tolist()
    expected = [p / sum(of_label) for p in of_label]
    assert predictions()[name].page_relevance == pytest.approx(expected, abs=0.02)


def test_page_relevance_of_another_class_would_be_noticed():
    relevance = torch.tensor(predictions()["paper"].page_relevance)
    shares = page_probabilities("paper") / page_probabilities("paper").sum(0)
    distances = (shares - relevance[:, None]).abs().amax(0)
    assert distances.argsort()[0] == CLASSES.index("paper")
    assert distances.sort().values[1] > 0.05
