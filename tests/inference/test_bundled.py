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
    assignment  .948 .000 .001 .000 .000 .009 .002 .001 .001 .000 .001 .014 .000 .021 .001 .001
    cheatsheet  .000 .002 .988 .000 .001 .000 .002 .000 .000 .000 .000 .000 .000 .005 .001 .000
    datasheet   .000 .000 .004 .000 .959 .001 .003 .005 .002 .000 .000 .020 .001 .004 .001 .000
    form        .001 .001 .002 .000 .004 .980 .003 .004 .000 .000 .000 .000 .000 .005 .000 .000
    paper       .012 .003 .012 .013 .014 .002 .001 .001 .010 .011 .829 .057 .001 .033 .002 .001
    report      .018 .108 .003 .015 .006 .003 .002 .027 .028 .004 .002 .770 .002 .003 .007 .004
    sheet_music .002 .000 .000 .002 .000 .001 .000 .000 .001 .000 .000 .002 .000 .990 .001 .000
    slides      .001 .021 .004 .001 .000 .001 .000 .003 .000 .001 .000 .001 .000 .001 .964 .000
""")

# The same by pixels alone, by which the report is taken for a manual.
PIXELS = table("""
    assignment  .312 .005 .014 .006 .077 .143 .016 .136 .040 .003 .007 .179 .003 .036 .001 .022
    cheatsheet  .000 .033 .897 .001 .002 .007 .020 .002 .001 .001 .000 .000 .002 .029 .006 .000
    datasheet   .008 .001 .006 .003 .738 .111 .030 .015 .010 .005 .002 .056 .001 .012 .001 .001
    form        .001 .003 .013 .001 .150 .787 .015 .006 .001 .001 .000 .001 .001 .018 .000 .000
    paper       .019 .007 .022 .026 .055 .045 .001 .018 .072 .082 .601 .019 .002 .029 .001 .001
    report      .021 .168 .013 .117 .029 .060 .010 .363 .048 .067 .005 .029 .037 .004 .009 .019
    sheet_music .001 .000 .000 .003 .002 .003 .000 .001 .001 .001 .000 .002 .000 .984 .001 .000
    slides      .001 .017 .024 .003 .003 .001 .000 .015 .000 .001 .001 .005 .000 .002 .925 .001
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
