"""Packets: several documents glued into one, for training and measuring. The labels, where each begins, are free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from docvit.data.dataset import DocumentDataset
from docvit.documents.pages import PageStack
from docvit.documents.words import Words

MOST_DOCUMENTS = 8

ALIKE = 0.5  # of the neighbours are of one kind ...
ONE_SOURCE = 0.35  # ... and of those so many of one source

FIRST_PAGES = 0.25  # of the documents are one to three first pages

MOST_PAGES = 24  # of a document in a packet

WITH_BLANKS, AFTER_EACH = 0.2, 0.8  # packets with blank pages between documents, and gaps that have one in these


class Piece(NamedTuple):
    """The first `pages` pages of a document (its index), and whether a blank page follows."""

    document: int
    pages: int
    blank_after: bool


def draw_packet(
    first: int,
    labels: np.ndarray,
    groups: np.ndarray,
    lengths: Sequence[int],
    random: np.random.Generator,
    *,
    max_pages: int,
) -> list[Piece]:
    """One to eight documents, `first` in front, no document twice; of each at most `max_pages` pages.

    Args:
        labels, groups: (documents,) kind and source of each document.
        lengths: pages of each document.
    """
    with_blanks = random.random() < WITH_BLANKS
    chosen = [first]
    for _ in range(random.integers(MOST_DOCUMENTS)):
        following = _draw_next(chosen, labels, groups, random)
        if following is None:
            break
        chosen.append(following)
    pieces = []
    for document in chosen:
        short = random.random() < FIRST_PAGES
        pages = min(lengths[document], int(random.integers(1, 4)) if short else max_pages)
        pieces.append(Piece(document, pages, bool(with_blanks and random.random() < AFTER_EACH)))
    pieces[-1] = pieces[-1]._replace(blank_after=False)
    return pieces


def _draw_next(
    chosen: Sequence[int], labels: np.ndarray, groups: np.ndarray, random: np.random.Generator
) -> int | None:
    """A document that is not chosen yet: of the last one's kind or not, of its source or not, where there is one."""
    free = np.ones(len(labels), bool)
    free[chosen] = False
    kind, source = labels == labels[chosen[-1]], groups == groups[chosen[-1]]
    alike, one_source = random.random() < ALIKE, random.random() < ONE_SOURCE
    of_kind = free & (kind if alike else ~kind)
    for candidates in (of_kind & (source if one_source else ~source), of_kind, free):
        if candidates.any():
            return int(random.choice(candidates.nonzero()[0]))
    return None


def glue(pieces: Sequence[Piece], load: Callable[[Piece], PageStack]) -> tuple[PageStack, list[bool]]:
    """One stack of the pages of all pieces, and for each page whether a document begins there.

    A blank page between two documents is the back of the sheet before it: no document begins there.
    """
    pages: list[Any] = []
    words: list[Words] = []
    begins: list[bool] = []
    for piece in pieces:
        stack = load(piece)
        pages += stack.pages
        words += stack.words or [Words()] * len(stack.pages)
        begins += [i == 0 for i in range(len(stack.pages))]
        if piece.blank_after:
            pages.append(_blank(stack.pages[-1]))
            words.append(Words())
            begins.append(False)
    return PageStack("<packet>", pages, list(range(len(pages))), len(pages), words), begins


def make_packet(
    dataset: DocumentDataset, groups: np.ndarray, index: int, random: np.random.Generator
) -> tuple[PageStack, list[bool]]:
    """A packet that begins with document `index` of a data set, and for each page whether a document begins there.

    Half of its documents are augmented. Half of the packets keep all their words, a third none, the others lose those
    of half of their documents.

    Args:
        groups: (documents,) source of each document.
    """
    lengths = [len(document.indices) for document in dataset.documents]
    pieces = draw_packet(index, np.array(dataset.labels), groups, lengths, random, max_pages=MOST_PAGES)
    worded = random.choice([1.0, 0.0, 0.5], p=[0.5, 0.35, 0.15])

    def load(piece: Piece) -> PageStack:
        document = dataset.documents[piece.document]
        stack = document.load(document.indices[: piece.pages])
        if random.random() < 0.5:
            stack = dataset.augment(stack, random)
        return stack if random.random() < worded else stack._replace(words=[])

    return glue(pieces, load)


def _blank(page: Any) -> Any:
    """White paper of the size of a page, uint8 (H, W, C) or normalised (C, H, W)."""
    if isinstance(page, Tensor):  # its patches are all left out, whatever its level is
        return torch.zeros_like(page)
    return np.full_like(page, 255)
