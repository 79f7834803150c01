"""Random choices about a document are independent: none of them draws from another's stream."""

from __future__ import annotations

import numpy as np
import pytest

from docvit.data import dataset as module
from docvit.data.augment import Augmentation
from docvit.data.dataset import DocumentDataset, View
from docvit.data.labels import read_labelled
from docvit.documents.cache import PageCache
from docvit.documents.rendering import Rendering

RENDERING = Rendering(size=64, mode="L")
VIEW = View(
    RENDERING, max_pages=2, augmentation=Augmentation(), patch_dropout=0.4, mix_pages=1.0, training=True
)  # all that can be drawn is drawn


@pytest.fixture(scope="module")
def documents(corpus, page_cache):
    data = read_labelled(corpus)
    files, _ = PageCache(page_cache, RENDERING, words=True).prepare(data.paths, workers=0)
    return [files[path] for path in data.paths], data.labels


@pytest.fixture
def begun(monkeypatch):
    """The state in which each generator began, as numbers, in the order in which they were made."""
    states, original = [], np.random.default_rng

    def recorded(key):
        random = original(key)
        states.append(random.bit_generator.state["state"]["state"])
        return random

    monkeypatch.setattr(module.np.random, "default_rng", recorded)
    return states


def streams(dataset, begun, key):
    """The streams of one document in one epoch: its partner, its pages, its patches."""
    begun.clear()
    epoch, index = key
    assert dataset.partner(epoch, index) is not None
    drawn = set(begun)
    dataset.partners = None  # else the partner's own pages are drawn as well
    dataset.collate([dataset[key]])
    return drawn, set(begun) - drawn, len(begun)


def test_partner_pages_and_patches_of_all_documents_and_epochs_draw_from_streams_of_their_own(documents, begun):
    seen = set()
    for epoch in range(3):
        for index in range(4):
            dataset = DocumentDataset(*documents, VIEW, seed=3)
            partner, others, count = streams(dataset, begun, (epoch, index))
            assert (len(partner), len(others), count) == (1, 2, 3)
            assert not seen & (partner | others)
            seen |= partner | others


def test_another_draw_changes_and_drops_anew_but_chooses_the_same_pages_and_partners(documents, begun):
    first, second = (streams(DocumentDataset(*documents, VIEW, draw=draw), begun, (1, 2)) for draw in (0, 1))
    assert first[0] == second[0]
    assert len(first[1] & second[1]) == 1  # the choice of pages
    assert len(second[1] - first[1]) == 2


def test_who_gets_a_partner_says_nothing_about_how_strongly_it_is_changed(documents, monkeypatch):
    """Were one stream drawn from twice, documents with a partner would be those that are changed least."""
    strengths = []
    monkeypatch.setattr(module, "augment", lambda pages, _, random: strengths.append(random.uniform()) or [])
    view = View(RENDERING, max_pages=3, augmentation=Augmentation(), mix_pages=0.5, training=True)
    dataset = DocumentDataset(*documents, view)
    monkeypatch.setattr(dataset, "_choose", lambda document, random: [0])
    keys = [(epoch, index) for epoch in range(40) for index in range(len(dataset))]
    mixed = np.array([dataset.partner(*key) is not None for key in keys])
    for epoch, index in keys:
        dataset._load(epoch, index)
    assert abs(np.corrcoef(mixed, strengths)[0, 1]) < 0.15
