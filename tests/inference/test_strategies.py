"""The strategies of page classification, each against its definition worked out page by page."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY, classed_pdf
from PIL import Image

from docvit.documents.pages import PageStack
from docvit.inference.classify import DocumentClassifier
from docvit.inference.strategies import STRATEGIES, get_strategy, tile
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT

NAMES = ["document", "first", "second", "last", "grid", "max-confidence", "soft-vote", "hard-vote"]


@pytest.fixture(scope="module")
def classifier():
    """A model whose every page tells it something else."""
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY, num_classes=3, classes=CLASSES))
    with torch.no_grad():
        model.head.weight.mul_(40)
    return DocumentClassifier(model, device="cpu")


def page(seed, height=64, width=48):
    return np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)


def document(count, seed=0):
    return PageStack(f"{seed}.pdf", [page(100 * seed + i) for i in range(count)], list(range(count)), count)


def row(prediction):
    return np.array([prediction.scores[name] for name in CLASSES])


def page_rows(classifier, stack):
    """Probabilities (pages, classes), a run of the model for each page."""
    alone = [PageStack("page", [pixels], [0], 1) for pixels in stack.pages]
    return np.concatenate([[row(classifier.classify_pages([one])[0])] for one in alone])


def voted(rows):
    """The class of most pages; of those with equally many, the one that the pages find most probable on average."""
    votes = Counter(rows.argmax(1).tolist())
    return max(votes, key=lambda c: (votes[c], rows[:, c].mean()))


EXPECTED = {
    "first": lambda rows: rows[0],
    "second": lambda rows: rows[1] if len(rows) > 1 else rows[0],
    "last": lambda rows: rows[-1],
    "max-confidence": lambda rows: max(rows, key=max),
    "soft-vote": lambda rows: sum(rows) / len(rows),
}


def test_the_names():
    assert list(STRATEGIES) == NAMES
    with pytest.raises(ValueError, match="no strategy 'odd': choose one of document, first"):
        get_strategy("odd")


@pytest.mark.parametrize("name", EXPECTED)
def test_each_by_its_definition_in_one_batch(classifier, name):
    stacks = [document(count, seed) for seed, count in enumerate([1, 2, 5, 9])]
    for stack, found in zip(stacks, classifier.classify_pages(stacks, strategy=name), strict=True):
        assert row(found) == pytest.approx(EXPECTED[name](page_rows(classifier, stack)), abs=0.02)  # bfloat16
        assert found.score == max(found.scores.values()) == found.scores[found.label]
        assert sum(found.scores.values()) == pytest.approx(1, abs=1e-5)
        assert (found.path, found.num_pages, found.pages_read) == (stack.path, stack.num_pages, len(found.pages))


def test_hard_votes_are_shares_of_pages(classifier):
    stacks = [document(count, seed) for seed, count in enumerate([1, 3, 5, 9])]
    for stack, found in zip(stacks, classifier.classify_pages(stacks, strategy="hard-vote"), strict=True):
        rows = page_rows(classifier, stack)
        shares = np.bincount(rows.argmax(1), minlength=3) / len(rows)
        assert row(found) == pytest.approx(shares, abs=2e-3)
        assert found.label == CLASSES[voted(rows)]


@pytest.mark.parametrize("count", [2, 4, 60])
def test_equal_votes_are_decided_by_the_mean(count):
    rows = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]] * (count // 2))
    scores = STRATEGIES["hard-vote"].combine(rows)
    assert scores.argmax() == voted(rows.numpy()) == 2
    assert scores.tolist() == pytest.approx([0.5, 0, 0.5], abs=2e-3)
    surer = torch.tensor([[0.4, 0.35, 0.25]] * 3 + [[0, 0, 1.0]] * 2)  # the mean alone would say the last
    assert STRATEGIES["hard-vote"].combine(surer).argmax() == 0
    assert STRATEGIES["soft-vote"].combine(surer).argmax() == 2


def test_the_model_s_own_way_is_the_default(classifier):
    stacks = [document(3)]
    assert classifier.classify_pages(stacks) == classifier.classify_pages(stacks, strategy="document")


@pytest.mark.parametrize("name", NAMES)
def test_one_page_gives_the_same_under_every_strategy(classifier, name):
    stack = document(1)
    (whole,), (found,) = classifier.classify_pages([stack]), classifier.classify_pages([stack], strategy=name)
    assert found.label == whole.label
    assert found.page_relevance == [1]
    if name != "hard-vote":
        assert row(found) == pytest.approx(row(whole), abs=1e-5)


def test_pages_are_seen_as_the_first_of_their_document(classifier, monkeypatch):
    seen, original = [], DocViT.pack
    monkeypatch.setattr(DocViT, "pack", lambda m, d, **o: seen.append(original(m, d, **o)) or seen[-1])
    late = PageStack("late.pdf", [page(1), page(2), page(3)], [0, 7, 12], 13)
    (found,) = classifier.classify_pages([late, late], strategy="soft-vote")[:1]
    (batch,) = seen  # all pages of all documents together
    assert batch.page_index.tolist() == [0] * 6
    assert batch.num_documents == 6
    assert [p.number for p in found.pages] == [1, 8, 13]
    assert len(found.page_relevance) == 3
    assert sum(found.page_relevance) == pytest.approx(1)
    assert [p.number for p in classifier.classify_pages([late], strategy="last")[0].pages] == [13]


# --- the grid ---


def flat(grey, height=64, width=48):
    return np.full((height, width), grey, np.uint8)


def test_pages_are_tiled_row_by_row_on_a_page_of_the_model_s_size(classifier):
    stack = PageStack("a", [flat(40 * i) for i in range(5)], [0, 1, 2, 3, 4], 5)
    tiled = tile(stack, classifier.rendering)  # 3 columns, 2 rows of 48 x 64 pages: 144 x 128, and so 64 x 57
    assert tiled.dtype == np.uint8
    assert max(tiled.shape) == 64
    assert all(side % 16 == 0 for side in tiled.shape)
    rows, columns = (np.array_split(np.arange(side), cells) for side, cells in zip(tiled.shape, (2, 3), strict=True))
    middles = [[int(tiled[r[len(r) // 2], c[len(c) // 2]]) for c in columns] for r in rows]
    assert middles == [[0, 40, 80], [120, 160, 255]]


def test_pages_keep_their_proportions_in_the_grid(classifier):
    stack = PageStack("a", [flat(0, 64, 32), flat(0, 32, 64)], [0, 1], 2)
    tiled = tile(stack, classifier.rendering)  # two cells of 64 x 64, side by side
    assert tiled.shape == (32, 64)
    assert Image.fromarray(255 - tiled).getbbox() == (0, 0, 64, 32)
    assert tiled[:, :16].max() == 0
    assert tiled[:, 17:32].min() == 255
    assert tiled[:16, 33:].max() == 0
    assert tiled[17:, 33:].min() == 255


def test_a_grid_of_one_page_is_the_page(classifier):
    assert (tile(document(1), classifier.rendering) == page(0)).all()


def test_colour_pages_and_very_many(classifier):
    from dataclasses import replace

    colour = PageStack("a", [np.stack([flat(10), flat(100), flat(200)], 2)] * 2, [0, 1], 2)
    tiled = tile(colour, replace(classifier.rendering, mode="RGB"))
    assert tiled[2, 2].tolist() == tiled[2, -3].tolist() == [10, 100, 200]
    crowd = PageStack("b", [flat(0)] * 5000, list(range(5000)), 5000)
    assert tile(crowd, classifier.rendering).shape == (64, 48)


def test_the_grid_is_what_the_model_sees(classifier):
    stack = document(4)
    (found,) = classifier.classify_pages([stack], strategy="grid")
    tiled = PageStack("tiled", [tile(stack, classifier.rendering)], [0], 1)
    assert row(found) == pytest.approx(row(classifier.classify_pages([tiled])[0]), abs=1e-6)
    assert (found.pages_read, [p.number for p in found.pages]) == (4, [1, 2, 3, 4])
    assert found.page_relevance == []  # one class token for all of them


# --- from files ---


def test_files_are_read_no_further_than_needed(classifier, tmp_path, monkeypatch):
    from docvit.documents import pages

    path = tmp_path / "five.pdf"
    path.write_bytes(classed_pdf("text", 5))
    drawn, original = [], pages.Document.render
    monkeypatch.setattr(pages.Document, "render", lambda d, i, **r: drawn.append(i) or original(d, i, **r))
    for name, read, used in (("first", [0], [1]), ("last", [0, 4], [5]), ("soft-vote", [0, 2, 4], [1, 3, 5])):
        drawn.clear()
        (found,) = classifier.predict([path], strategy=name, workers=0, max_pages=3)
        assert drawn == read
        assert ([p.number for p in found.pages], found.num_pages, found.error) == (used, 5, None)
    with pytest.raises(ValueError, match="no strategy 'odd'"):
        next(classifier.predict([path], strategy="odd", workers=0))
