"""Embeddings: one row per document, in order, and what becomes of documents that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, classed_pdf, pdf_bytes, worded_pdf
from PIL import Image

from docvit.documents.errors import Empty, NotFound
from docvit.documents.pages import read_document
from docvit.inference.classify import DocumentClassifier
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY, words=256, pooling="mean+std", num_classes=2))
    torch.nn.init.normal_(model.words.to_pages.weight)
    return DocumentClassifier(model, device="cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("embedded")
    for name, content in (("a", worded_pdf("bars", 0)), ("b", worded_pdf("text", 1, 3)), ("c", classed_pdf("blocks"))):
        (folder / f"{name}.pdf").write_bytes(content)
    (folder / "blank.pdf").write_bytes(pdf_bytes(contents=[b""]))
    return [str(folder / f"{name}.pdf") for name in ("a", "gone", "b", "blank", "c")]


def feature(classifier, path, *, words=True):
    """By the model itself, of one document alone."""
    stack = read_document(path, classifier.rendering, words=words)
    with torch.inference_mode():
        model = classifier.model
        return model.forward_head(model.forward_features(model.pack([stack], words=words)), pre_logits=True)[0].numpy()


@pytest.mark.parametrize("words", [True, False])
def test_a_row_per_document_in_order(classifier, paths, words):
    rows = classifier.embed(paths, words=words, workers=0)
    assert rows.shape == (5, classifier.model.num_features)
    assert rows.dtype == np.float32
    for i in (0, 2, 4):
        np.testing.assert_allclose(rows[i], feature(classifier, paths[i], words=words), atol=0.03)
    assert np.isnan(rows[[1, 3]]).all()


def test_words_and_pages_count(classifier, paths):
    whole, pixels, first = (
        classifier.embed(paths[2], workers=0, **options)[0] for options in ({}, {"words": False}, {"max_pages": 1})
    )
    assert np.abs(whole - pixels).max() > 0.1
    assert np.abs(whole - first).max() > 0.1


def test_a_stream_gives_vectors_or_errors(classifier, paths):
    rows = list(classifier.embeddings(paths, workers=0))
    assert [row.path for row in rows] == paths
    assert [row.error is None for row in rows] == [row.vector is not None for row in rows]
    assert isinstance(rows[1].error, NotFound)
    assert isinstance(rows[3].error, Empty)
    assert [type(row.error) for row in classifier.embeddings(paths[1], workers=0)] == [NotFound]


def test_what_cannot_be_read_is_logged(classifier, paths, caplog):
    classifier.embed(paths[:2], workers=0)
    assert [record.getMessage().split(": ")[:2] for record in caplog.records] == [["no embedding", "NotFound"]]


def test_nothing_gives_no_rows_and_one_document_one(classifier):
    assert classifier.embed([]).shape == (0, classifier.model.num_features)
    assert classifier.embed(Image.linear_gradient("L"), workers=0).shape == (1, classifier.model.num_features)
