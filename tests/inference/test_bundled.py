"""What the bundled model says of the sample documents, and where its page relevance comes from."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from conftest import EXAMPLES

from docvit.documents.pages import read_document
from docvit.inference.classify import DocumentClassifier

CLASSES = ("assignment", "cheatsheet", "datasheet", "form", "paper", "report", "sheet_music", "slides")

# Probabilities of CLASSES for each document. Other weights have others: look at every change before writing it here.
GOLDEN = {
    "assignment": [0.646, 0.006, 0.027, 0.190, 0.008, 0.105, 0.018, 0.000],
    "cheatsheet": [0.000, 0.992, 0.001, 0.003, 0.000, 0.000, 0.002, 0.002],
    "datasheet": [0.005, 0.001, 0.964, 0.022, 0.001, 0.006, 0.001, 0.000],
    "form": [0.001, 0.002, 0.099, 0.892, 0.000, 0.001, 0.003, 0.000],
    "paper": [0.003, 0.001, 0.021, 0.004, 0.966, 0.004, 0.001, 0.000],
    "report": [0.011, 0.029, 0.021, 0.061, 0.005, 0.869, 0.001, 0.005],
    "sheet_music": [0.000, 0.000, 0.001, 0.001, 0.000, 0.000, 0.997, 0.000],
    "slides": [0.000, 0.022, 0.001, 0.000, 0.000, 0.004, 0.001, 0.971],
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
        features = model.forward_features(model.pack([read_document(path, classifier().rendering)]))
        return model.forward_pages(features).softmax(1)


@pytest.mark.parametrize("name", GOLDEN)
def test_label_and_probabilities_of_a_sample_document(name):
    found = predictions()[name]
    assert found.label == name
    assert [found.scores[label] for label in CLASSES] == pytest.approx(GOLDEN[name], abs=0.02)


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
