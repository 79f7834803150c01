"""Explanations: evidence of patches against its definition, and a picture of it for any document."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import TINY, classed_pdf
from matplotlib.figure import Figure
from PIL import Image

from docvit.documents.errors import Empty, NotFound
from docvit.documents.pages import PageStack
from docvit.inference.classify import DocumentClassifier, Page, Prediction
from docvit.inference.explain import MAX_DRAWN, Explanation, explain
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT


@pytest.fixture(scope="module")
def classifier(trained):
    return DocumentClassifier.from_pretrained(trained, device="cpu")


@pytest.fixture
def pdf(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(classed_pdf("blocks", 3))
    return path


def test_maps_cover_the_pages_and_blank_patches_say_nothing(classifier, pdf):
    found = explain(classifier, pdf)
    assert found.prediction.label == classifier(pdf).label == "blocks"
    assert len(found.pages) == len(found.relevance) == 3
    for page, relevance in zip(found.pages, found.relevance, strict=True):
        assert relevance.shape == (page.shape[0] // 16, page.shape[1] // 16)
        cells = page.reshape(relevance.shape[0], 16, relevance.shape[1], 16).astype(int)
        blank = cells.max((1, 3)) - cells.min((1, 3)) <= 8
        assert np.array_equal(np.isnan(relevance), blank)
    evidence = np.concatenate([r.flatten() for r in found.relevance])
    assert np.nanmin(evidence) >= 0
    assert np.nanmax(evidence) == 1


def test_evidence_is_gradient_times_activation(classifier, pdf):
    found, model = explain(classifier, pdf), classifier.model
    batch = model.pack([PageStack("", found.pages, [0, 1, 2], 3)])
    nudge = torch.zeros(batch.num_patches, requires_grad=True)
    rows = torch.cat([1 + i + torch.arange(int(a), int(b)) for i, (a, b) in enumerate(_pairs(batch.page_bounds))])
    block = model.blocks[-1]

    def scale(module, args):  # every patch's token times 1 + its nudge: the derivative is what is asked
        x = args[0]
        return (x.index_copy(0, rows, x[rows] * (1 + nudge[:, None])), *args[1:])

    hook = block.register_forward_pre_hook(scale)
    try:
        model.forward_intermediates(batch)["logits"][0, classifier.classes.index("blocks")].backward()
    finally:
        hook.remove()
    expected = nudge.grad.clamp(min=0)
    ours = np.concatenate([r[~np.isnan(r)] for r in found.relevance])
    np.testing.assert_allclose(ours, (expected / expected.max()).numpy(), atol=1e-4)


def test_a_model_without_blocks_shows_each_page_as_a_whole(pdf):
    settings = TINY | {"depth": 0, "stem": "ink", "pooling": "mean+std+first"}
    model = DocViT(DocViTConfig(**settings, num_classes=3, classes=("a", "b", "c")))
    found = explain(DocumentClassifier(model, device="cpu"), pdf)
    shares = np.array(found.prediction.page_relevance) / max(found.prediction.page_relevance)
    for share, relevance in zip(shares, found.relevance, strict=True):
        assert relevance[~np.isnan(relevance)] == pytest.approx(share)
    found.save(pdf.with_suffix(".png"))


def _pairs(bounds):
    return itertools.pairwise(bounds)


@pytest.mark.parametrize(
    "name", ["plain.pdf", "a $b^{ c$.pdf", "Prüfung – 試験.pdf", "two\nlines\udcff.pdf", "long " * 40 + ".pdf"]
)
def test_a_picture_is_drawn_whatever_the_file_is_called(classifier, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(classed_pdf("text", 2))
    file = tmp_path / "deep" / "picture.png"
    explain(classifier, path).save(file)
    with Image.open(file) as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 200
    assert np.ptp(pixels, axis=2).max() > 60  # there is colour on it


def test_a_long_document_shows_its_most_relevant_pages_in_their_order(classifier, tmp_path, monkeypatch):
    figures, original = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **o: figures.append(figure) or original(figure, *a, **o))
    count = MAX_DRAWN + 5
    relevance = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    pages = [Page(number, failed=number == 3) for number in range(1, count + 2)]
    prediction = Prediction("long.pdf", "text", 0.9, pages=pages, page_relevance=relevance.tolist())
    Explanation(prediction, [np.full((32, 32), 255, np.uint8)] * count, [np.ones((2, 2), np.float32)] * count).save(
        tmp_path / "long.png"
    )
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    shown = [int(title.split()[1]) for title in titles]
    read = [page.number for page in pages if not page.failed]
    assert shown == [number for number, share in zip(read, relevance, strict=True) if share > 5]


def test_no_more_pages_are_explained_than_are_read(classifier, tmp_path):
    path = tmp_path / "five.pdf"
    path.write_bytes(classed_pdf("text", 5))
    assert len(explain(classifier, path).relevance) == 5
    assert len(explain(classifier, path, max_pages=3).relevance) == 3


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_blank_pages_a_single_block_and_colour(tmp_path, mode):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY | {"depth": 1, "in_chans": 1 if mode == "L" else 3}, num_classes=2))
    classifier = DocumentClassifier(model, device="cpu")
    Image.linear_gradient("L").resize((64, 96)).save(tmp_path / "page.png")
    found = explain(classifier, tmp_path / "page.png")
    found.save(tmp_path / "out.png")
    assert not np.isnan(found.relevance[0]).all()
    Image.new("L", (64, 96), "white").save(tmp_path / "page.png")
    with pytest.raises(Empty, match="blank"):
        explain(classifier, tmp_path / "page.png")


def test_a_file_that_cannot_be_read(classifier, tmp_path):
    with pytest.raises(NotFound):
        explain(classifier, tmp_path / "gone.pdf")


def test_a_frozen_model_is_explained_too_and_stays_frozen(trained, pdf):
    frozen = DocumentClassifier.from_pretrained(trained, device="cpu")
    expected = explain(frozen, pdf)
    frozen.model.requires_grad_(False)
    for ours, theirs in zip(explain(frozen, pdf).relevance, expected.relevance, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not any(weight.requires_grad for weight in frozen.model.parameters())
