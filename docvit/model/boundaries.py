"""Where in a file of several documents does a new one begin: a small head on page tokens and what ties pages together.

Page tokens say what a page looks like and what it is about. What tells whether two pages belong together is often more
exact than that: the same running title at the same position, a page number that goes on, rare words on both. These
ties are measured, nothing in them is learned, and the head weighs them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from docvit.documents.hashing import hash_ngrams
from docvit.documents.patches import PatchSequence, segment_ids
from docvit.model.config import DocViTConfig
from docvit.model.stems import normalise
from docvit.model.words import WordEmbedding, page_ngrams

GAPS = (1, 2, 3)  # pages between the two that a tie joins

TIES = 13  # measured of each pair of pages

BAND = 8  # running titles and page numbers stand in the first or the last eighth of a page

POOLED = 4  # px; pages are compared at a quarter of their resolution, so that a slight shift changes little

MOST_NUMBERS = 999  # the largest page number that is looked for; a year is none

WIDTH = 32  # of a page token for the head


class BoundaryHead(nn.Module):
    """The logit of each page that a new document begins there, from the two pages before it, itself and the next.

    D is the config's `embed_dim`, and `boundaries` the hidden width of the MLP.
    """

    numbers: Tensor
    number_hashes: Tensor

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__()
        self.in_chans, self.patch_size, hidden = config.in_chans, config.patch_size, config.boundaries
        # white paper once it is normalised
        self.white = (1 - sum(config.mean) / len(config.mean)) / (sum(config.std) / len(config.std))
        hashes, numbers = _number_hashes()
        self.register_buffer("number_hashes", hashes, persistent=False)
        self.register_buffer("numbers", numbers, persistent=False)
        self.proj = nn.Linear(config.embed_dim, WIDTH)
        inputs = 6 * WIDTH + 6 * TIES
        self.norm = nn.BatchNorm1d(inputs)
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, 1),
        )

    def forward(self, pages: Tensor, ties: Tensor, document: Tensor) -> Tensor:
        """Logits (N,) from page tokens (N, D), their ties (N, 3, `TIES`) and the files (N,) they belong to.

        The first page of a file has no neighbour.
        """

        def at(x: Tensor, steps: int) -> Tensor:
            return shift(x, steps, document)

        one, two, three = ties.to(pages.dtype).unbind(1)
        page = self.proj(pages)
        before = at(page, -1)
        tokens = [page, before, (page - before).abs(), page * before, at(page, -2), at(page, 1)]
        near = [one, at(one, -1), at(one, 1), two, at(two, 1), at(three, 1)]
        inputs = torch.cat([*tokens, *near], 1)
        return self.mlp(normalise(self.norm, inputs))[:, 0]

    @torch.no_grad()
    def ties(self, batch: PatchSequence, words: WordEmbedding | None) -> Tensor:
        """(N, 3, `TIES`) ties of each page with the ones 1, 2 and 3 (`GAPS`) before it; 0 where none is.

        Cosines of the pixels of the whole pages, of their first and of their last eighth; cosines of the words there,
        and whether both have any; whether page numbers go on, whether each has one, and whether it is 1; the same grid.
        """
        document = batch.document_of_page.to(batch.patches.device)
        found: list[list[Tensor]] = [[] for _ in GAPS]
        bands = _bands(batch)
        for part in (batch, *bands):
            pixels = F.normalize(self._canvas(part), dim=1)  # (N, F)
            text = pixels.new_zeros(len(pixels), 1) if words is None else _weigh_words(part, words)
            worded = text.any(1)
            for of_gap, gap in zip(found, GAPS, strict=True):
                of_gap += [_products(x, gap, document) for x in (pixels, text)]
                of_gap.append(worded & shift(worded, -gap, document))
        numbers = self._numbers(batch, bands)
        grids = batch.grids.to(document.device)
        for of_gap, gap in zip(found, GAPS, strict=True):
            before = shift(numbers, -gap, document)
            goes_on = (before[:, :-gap] & numbers[:, gap:]).any(1)
            of_gap += [goes_on, numbers.any(1) & before.any(1), numbers[:, 0]]
            of_gap.append((grids == shift(grids, -gap, document)).all(1))
        return torch.stack([torch.stack([tie.float() for tie in of_gap], 1) for of_gap in found], 1)

    def _canvas(self, batch: PatchSequence) -> Tensor:
        """(N, F) ink of each page, at a quarter of its resolution; patches that are left out have none."""
        pixels = batch.patches.float().unflatten(1, (self.in_chans, self.patch_size, self.patch_size))
        ink = (self.white - F.avg_pool2d(pixels.mean(1, keepdim=True), POOLED)[:, 0]).clamp(min=0)  # (T, p, p)
        rows, cols = batch.grids.amax(0).tolist()
        canvas = ink.new_zeros(batch.num_pages, rows, cols, *ink.shape[1:])
        canvas[batch.page_of_patch.to(ink.device), batch.row, batch.col] = ink
        return rearrange(canvas, "n r c y x -> n (r c y x)")

    def _numbers(self, batch: PatchSequence, bands: Sequence[PatchSequence]) -> Tensor:
        """(N, MOST_NUMBERS) which numbers stand in the first or the last eighth of each page."""
        found = batch.words.new_zeros(batch.num_pages, MOST_NUMBERS, dtype=torch.bool)
        for band in bands:
            index = torch.searchsorted(self.number_hashes, band.words).clamp(max=MOST_NUMBERS - 1)
            is_number = self.number_hashes[index] == band.words
            page = segment_ids(page_ngrams(band), band.words.shape[0]).to(index.device)
            found[page[is_number], self.numbers[index[is_number]] - 1] = True
        return found


def _weigh_words(batch: PatchSequence, words: WordEmbedding) -> Tensor:
    """(N, buckets) TF-IDF of each page, of norm 1 or 0, as in `WordEmbedding`; dense, which is faster to compare."""
    page = segment_ids(page_ngrams(batch), batch.words.shape[0]).to(batch.words.device)
    ids = page * words.buckets + batch.words % words.buckets
    counts = torch.bincount(ids, minlength=batch.num_pages * words.buckets).view(batch.num_pages, -1).to(words.idf)
    # log(e * 1) = 1; where there are none, the clamp gives 1 / e and so 0
    return F.normalize((counts * math.e).clamp(min=1).log() * words.idf, dim=1)


def _products(x: Tensor, gap: int, document: Tensor) -> Tensor:
    """(N,) the inner product of each row of `x` (N, F) with the one `gap` before it; 0 in another document."""
    products = F.pad(torch.linalg.vecdot(x[gap:], x[:-gap]), (gap, 0))[: len(x)]
    return products * (shift(document + 1, -gap, document) > 0)


def shift(x: Tensor, steps: int, document: Tensor) -> Tensor:
    """For each page the row of `x` (N, ...) that is `steps` pages further on in its document (N,); else zeros."""
    index = torch.arange(len(x), device=x.device) + steps
    inside = index.clamp(0, len(x) - 1)
    same = (index == inside) & (document[inside] == document)
    return torch.where(same.reshape(-1, *[1] * (x.ndim - 1)), x[inside], torch.zeros_like(x))


def _bands(batch: PatchSequence) -> list[PatchSequence]:
    """The first and the last eighth of each page."""
    rows = batch.grids[:, 0][batch.page_of_patch.to(batch.grids.device)]
    return [batch.select(edge * BAND < rows) for edge in (batch.row, rows - 1 - batch.row)]


def _number_hashes() -> tuple[Tensor, Tensor]:
    """The sorted hashes of the numbers up to `MOST_NUMBERS` as whole words, and the number of each."""
    hashes, owners = hash_ngrams([str(number) for number in range(1, MOST_NUMBERS + 1)])
    whole = np.zeros(MOST_NUMBERS, np.int64)
    whole[owners] = hashes  # n-grams come from short to long: of each word the last one, which is all of it, stays
    order = whole.argsort()
    return torch.from_numpy(whole[order]), torch.from_numpy(order + 1)
