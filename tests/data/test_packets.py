"""Packets: what is drawn, how it is glued, and what it depends on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from conftest import WORDS, worded_pdf

from docvit.data import packets as module
from docvit.data.augment import Augmentation
from docvit.data.dataset import DocumentDataset, View
from docvit.data.labels import read_labelled
from docvit.data.packets import Piece, draw_packet, glue, make_packet
from docvit.documents.cache import PageCache
from docvit.documents.pages import PageStack
from docvit.documents.rendering import Rendering
from docvit.documents.words import Words

RENDERING = Rendering(size=64, mode="L")
LABELS = np.repeat(np.arange(6), 20)
GROUPS = np.arange(120) // 4  # five sources per kind
LENGTHS = [1 + i % 9 for i in range(120)]


def drawn(count=400, **options):
    options = {"max_pages": 6} | options
    return [draw_packet(i % 120, LABELS, GROUPS, LENGTHS, np.random.default_rng(i), **options) for i in range(count)]


def test_one_to_eight_documents_that_begin_with_the_first_and_never_repeat():
    packets = drawn()
    assert {len(p) for p in packets} == set(range(1, 9))
    assert [p[0].document for p in packets] == [i % 120 for i in range(400)]
    assert all(len({piece.document for piece in p}) == len(p) for p in packets)


def test_half_of_the_neighbours_are_of_one_kind_and_some_of_these_of_one_source():
    pairs = [(a.document, b.document) for p in drawn() for a, b in pairwise(p)]
    kind, source = (np.array([x[a] == x[b] for a, b in pairs]) for x in (LABELS, GROUPS))
    assert kind.mean() == pytest.approx(0.5, abs=0.04)
    assert source[kind].mean() == pytest.approx(module.ONE_SOURCE, abs=0.06)


def test_whole_documents_up_to_a_limit_and_first_pages():
    pieces = [piece for p in drawn() for piece in p]
    assert all(1 <= piece.pages <= min(6, LENGTHS[piece.document]) for piece in pieces)
    long = [piece.pages for piece in pieces if LENGTHS[piece.document] > 6]
    assert np.mean(np.array(long) <= 3) == pytest.approx(module.FIRST_PAGES, abs=0.06)
    assert 6 in long


def test_some_packets_have_blank_pages_between_and_never_after_the_last():
    packets = drawn()
    with_blanks = [any(piece.blank_after for piece in p) for p in packets if len(p) > 2]
    assert 0.1 < np.mean(with_blanks) < 0.3
    assert not any(p[-1].blank_after for p in packets)


def test_too_few_documents_give_what_there_is():
    labels, groups = np.zeros(2, int), np.zeros(2, int)
    lengths = {len(draw_packet(0, labels, groups, [3, 3], np.random.default_rng(i), max_pages=9)) for i in range(30)}
    assert lengths == {1, 2}


def test_glued_pages_carry_their_words_and_the_blank_belongs_to_the_document_before_it():
    said = Words(("hello",), np.array([[0, 0, 1, 1]], np.float32), "text")

    def load(piece):
        pages = [np.full((64, 32), piece.document, np.uint8)] * piece.pages
        return PageStack("x", pages, list(range(piece.pages)), 9, [said] * piece.pages if piece.document else [])

    stack, begins = glue([Piece(5, 2, True), Piece(0, 1, False)], load)
    assert [int(page[0, 0]) for page in stack.pages] == [5, 5, 255, 0]
    assert begins == [True, False, False, True]
    assert [len(words) for words in stack.words] == [1, 1, 0, 0]
    assert (stack.indices, stack.num_pages) == ([0, 1, 2, 3], 4)


@pytest.fixture(scope="module")
def documents(corpus, page_cache):
    data = read_labelled(corpus)
    files, _ = PageCache(page_cache, RENDERING, words=True).prepare(data.paths, workers=0)
    return [files[path] for path in data.paths], data.labels


def dataset(documents, **changes):
    options = {"augmentation": Augmentation(), "training": True, "words": True}
    return DocumentDataset(*documents, View(RENDERING, **options | changes))


def made(data, index=5, seed=0):
    return make_packet(data, np.arange(12) % 4, index, np.random.default_rng(seed))


def same(one, two):
    pages = zip(one[0].pages, two[0].pages, strict=False)
    return len(one[0].pages) == len(two[0].pages) and all(np.array_equal(a, b) for a, b in pages)


def test_a_packet_depends_on_what_draws_it_alone(documents):
    first = made(dataset(documents))
    assert same(first, made(dataset(documents)))
    assert first[1] == made(dataset(documents))[1]
    assert not same(first, made(dataset(documents), index=6))
    assert not same(first, made(dataset(documents), seed=1))


def test_a_packet_begins_with_a_document_and_says_where_the_others_do(documents):
    for seed in range(10):
        stack, begins = made(dataset(documents), seed=seed)
        assert begins[0]
        assert len(begins) == len(stack.pages) == len(stack.words)
        assert sum(begins) <= module.MOST_DOCUMENTS


def test_some_packets_have_words_some_have_none_and_some_have_both(tmp_path, page_cache):
    paths = [tmp_path / f"{kind}{n}.pdf" for kind in WORDS for n in range(4)]
    for n, path in enumerate(paths):
        path.write_bytes(worded_pdf(path.stem[:-1], n % 4))
    files, _ = PageCache(page_cache, RENDERING, words=True).prepare(list(map(str, paths)), workers=0)
    data = dataset(([files[str(path)] for path in paths], [n // 4 for n in range(12)]), augmentation=None)
    seen = {frozenset(bool(words) for words in made(data, seed=seed)[0].words) for seed in range(40)}
    assert seen == {frozenset({False}), frozenset({True}), frozenset({True, False})}
