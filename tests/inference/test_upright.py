"""A document scanned sideways is seen as if it stood upright, whatever is made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from docvit.data.labels import LabelledDocuments
from docvit.documents.pages import read_document
from docvit.evaluation.compare import compare
from docvit.inference.classify import DocumentClassifier
from docvit.inference.split import split
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.upright import judge_upright
from docvit.training.few_shot import fit_documents


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DocViT(DocViTConfig(**TINY, num_classes=3, boundaries=8)).eval()


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """Four folders of two page images each, and the same with turned second pages; wide pages count as turned."""
    monkeypatch.setattr(DocViT, "forward_turns", lambda self, x, batch: (batch.grids[:, 1] > batch.grids[:, 0]).long())
    random = np.random.default_rng(0)
    for number in range(4):
        pages = [random.integers(0, 256, (64, 48), np.uint8) for _ in range(2)]
        for name, quarters in (("upright", 0), ("sideways", 1)):
            folder = tmp_path / name / "ab"[number % 2] / str(number)
            folder.mkdir(parents=True)
            Image.fromarray(pages[0]).save(folder / "1.png")
            Image.fromarray(np.rot90(pages[1], -quarters)).save(folder / "2.png")
    return tmp_path / "upright", tmp_path / "sideways"


def paths(folder):
    return sorted(str(path) for path in folder.glob("*/*"))


def test_the_label(model, documents):
    classifier = DocumentClassifier(model, device="cpu")
    upright, sideways = (classifier(paths(folder)[0]) for folder in documents)
    assert sideways.scores == upright.scores
    assert [page.turned for page in sideways.pages] == [0, 90]


def test_the_embedding(model, documents):
    classifier = DocumentClassifier(model, device="cpu")
    upright, sideways = (classifier.embed(paths(folder)[:1], workers=0) for folder in documents)
    np.testing.assert_array_equal(upright, sideways)


def test_the_parts_of_a_packet(model, documents):
    classifier = DocumentClassifier(model, device="cpu")
    upright, sideways = (split(paths(folder)[0], model=classifier) for folder in documents)
    assert sideways == upright


def test_own_classes(model, documents, tmp_path):
    model.save_pretrained(tmp_path / "base")
    options = {"model": tmp_path / "base", "device": "cpu", "workers": 0}
    (upright, expected), (sideways, found) = (fit_documents(folder, **options) for folder in documents)
    torch.testing.assert_close(sideways.head.weight, upright.head.weight)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)


def test_a_comparison(model, documents):
    classes = DocumentClassifier(model).classes
    data = [LabelledDocuments(tuple(paths(folder)), (0, 1, 2, 0), classes) for folder in documents]
    upright, sideways = (compare({"model": model}, labelled, workers=0, device="cpu") for labelled in data)
    assert sideways.models["model"].quality.ece == pytest.approx(upright.models["model"].quality.ece)
    assert (sideways.documents, sideways.pages) == (upright.documents, upright.pages) == (4, 8)


def test_only_documents_with_turned_pages_are_judged_again(model, documents):
    rendering = model.config.rendering
    upright, sideways = (read_document(paths(folder)[0], rendering) for folder in documents)
    judged = []

    def judge(stacks):
        judged.append(list(stacks))
        return [stack.pages[1].shape for stack in stacks], [quarters[id(stack)] for stack in stacks]

    quarters = {id(upright): torch.tensor([0, 0]), id(sideways): torch.tensor([0, 1])}
    tiles = sideways._replace(path="tiles")
    quarters[id(tiles)] = torch.tensor([1])  # of one token for both pages
    results, (stacks, turned) = judge_upright(
        lambda stacks: judge(stacks) if not judged else (["again"] * len(stacks), []), [upright, sideways, tiles]
    )
    assert results == [(64, 48), "again", (48, 64)]
    assert turned == [[0, 0], [0, 1], [0, 0]]
    assert stacks[0] is upright
    assert stacks[2] is tiles
    np.testing.assert_array_equal(stacks[1].pages[1], upright.pages[1])
    assert judge_upright(judge, [])[0] == []
