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


def table(text: str) -> dict[str, list[float]]:
    """Document -> probabilities of CLASSES."""
    rows = (line.split() for line in text.strip().splitlines())
    return {name: [float(value) for value in values] for name, *values in rows}


# Probabilities of CLASSES for each document. Other weights have others: look at every change before writing it here.
GOLDEN = table("""
    assignment  .996 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .002 .000 .000 .000 .000
    cheatsheet  .000 .000 .999 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000
    datasheet   .000 .000 .000 .000 .996 .000 .000 .001 .000 .000 .000 .002 .000 .000 .000 .000
    form        .000 .000 .000 .000 .000 .999 .000 .001 .000 .000 .000 .000 .000 .000 .000 .000
    paper       .006 .001 .002 .011 .004 .001 .000 .001 .001 .026 .886 .059 .000 .000 .000 .001
    report      .015 .009 .000 .007 .001 .003 .000 .018 .011 .002 .000 .931 .000 .000 .003 .001
    sheet_music .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .000 .999 .000 .000
    slides      .001 .007 .001 .000 .000 .000 .000 .001 .000 .000 .000 .001 .000 .000 .988 .000
""")

# The same by pixels alone.
PIXELS = table("""
    assignment  .262 .003 .003 .017 .044 .080 .004 .112 .039 .006 .009 .382 .003 .016 .000 .022
    cheatsheet  .000 .104 .861 .001 .002 .004 .008 .001 .000 .001 .001 .000 .004 .010 .003 .000
    datasheet   .005 .001 .004 .007 .730 .105 .006 .024 .009 .026 .009 .066 .001 .006 .000 .000
    form        .002 .006 .012 .003 .183 .745 .012 .011 .002 .003 .000 .004 .002 .014 .000 .000
    paper       .006 .004 .004 .010 .032 .015 .001 .007 .018 .165 .715 .017 .002 .002 .000 .001
    report      .044 .079 .003 .077 .034 .052 .007 .319 .083 .164 .017 .092 .012 .001 .003 .013
    sheet_music .001 .001 .000 .003 .001 .001 .000 .001 .000 .001 .000 .001 .000 .992 .000 .000
    slides      .002 .019 .024 .003 .001 .000 .000 .008 .000 .001 .001 .008 .000 .004 .928 .001
""")


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
