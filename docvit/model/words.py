"""Words at their addresses: hashed n-grams become vectors that are added to patch tokens and class tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from docvit.documents.patches import PatchSequence
from docvit.model.config import DocViTConfig


class WordEmbedding(nn.Module):
    """The words of a patch, and those of a page, as one vector each.

    A bag of n-grams is what TF-IDF makes of it, 1 + log(count) times the inverse document frequency, divided by its
    Euclidean norm, times a learned vector per bucket. A linear map, zero at first, brings it to the width of the
    tokens: a model that is given words begins as the same model without. Where there are no words the result is zero.

    With `document_words` a second table, zero at first, gives the words of a whole document.
    """

    idf: Tensor

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__()
        buckets, width, dim, document = config.words, config.word_dim, config.embed_dim, config.document_words
        self.buckets = buckets
        self.embedding = nn.EmbeddingBag(buckets, width, mode="sum")
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.register_buffer("idf", torch.ones(buckets))
        self.to_pages = _zero_map(width, dim)
        self.to_patches = _zero_map(width, dim) if config.reads_patches else None
        self.of_documents = nn.EmbeddingBag(buckets, document, mode="sum") if document else None
        if self.of_documents is not None:
            nn.init.zeros_(self.of_documents.weight)

    @property
    def counted(self) -> bool:
        """Whether the document frequencies have been set."""
        return bool((self.idf != 1).any())

    @torch.no_grad()
    def set_frequencies(self, frequencies: Tensor, documents: int) -> None:
        """Sets the inverse document frequencies: log((1 + documents) / (1 + frequency)) + 1, as in scikit-learn.

        Args:
            frequencies: (buckets,) number of training documents in which a bucket occurs.
            documents: number of training documents.
        """
        self.idf.copy_(torch.log((1 + documents) / (1 + frequencies.to(self.idf))) + 1)

    def forward(self, batch: PatchSequence) -> tuple[Tensor | None, Tensor]:
        """What is added to patch tokens (T, D), or None, and to class tokens (N, D)."""
        of_pages = self.to_pages(self._bags(batch, page_ngrams(batch)))
        return None if self.to_patches is None else self.to_patches(self._bags(batch, batch.word_bounds)), of_pages

    def directly(self, batch: PatchSequence) -> tuple[Tensor, Tensor] | None:
        """What the words give to the features of documents (B, `document_words`), and of pages alone, likewise."""
        if self.of_documents is None:
            return None
        of_documents, of_pages = (
            self._bags(batch, bounds, self.of_documents) for bounds in (document_ngrams(batch), page_ngrams(batch))
        )
        return of_documents, of_pages

    def weigh(self, ngrams: Tensor, bounds: Tensor) -> Occurrences:
        """The weights (K,) of hashed n-grams (G,) in the bags that `bounds` (S + 1,) cut out of them."""
        bounds = bounds.to(ngrams.device)
        found = count_ngrams(ngrams % self.buckets, bounds, self.buckets)
        weights = (1 + found.repeats.to(self.idf).log()) * self.idf[found.ids]
        norms = weights.new_zeros(bounds.shape[0] - 1).index_add(0, found.bags, weights.square()).sqrt()
        return found._replace(weights=weights / norms.clamp(min=1e-12)[found.bags])

    def _bags(self, batch: PatchSequence, bounds: Tensor, table: nn.EmbeddingBag | None = None) -> Tensor:
        """Vectors (S, width) of the S bags that `bounds` (S + 1,) cut out of a batch's n-grams."""
        found = self.weigh(batch.words, bounds)
        offsets = torch.searchsorted(found.bags, torch.arange(bounds.shape[0] - 1, device=found.bags.device))
        vectors: Tensor = (table or self.embedding)(found.ids, offsets, per_sample_weights=found.weights)
        return vectors


class Occurrences(NamedTuple):
    """Each n-gram once per bag, bag by bag: which bag (K,), its bucket (K,), how often (K,), and its weight (K,)."""

    bags: Tensor
    ids: Tensor
    repeats: Tensor
    weights: Tensor | None = None


def page_ngrams(batch: PatchSequence) -> Tensor:
    """(N + 1,) n-grams before each page, cumulative."""
    return batch.word_bounds[batch.page_bounds.to(batch.word_bounds.device)]


def document_ngrams(batch: PatchSequence) -> Tensor:
    """(B + 1,) n-grams before each document, cumulative."""
    bounds = page_ngrams(batch)
    return bounds[batch.document_bounds.to(bounds.device)]


def count_ngrams(ids: Tensor, bounds: Tensor, buckets: int) -> Occurrences:
    """Counts the buckets `ids` (G,) in each of the bags that `bounds` (S + 1,) cut out of them."""
    bags = torch.searchsorted(bounds[1:], torch.arange(len(ids), device=ids.device), right=True)
    keys, repeats = _sorted(bags * buckets + ids).unique_consecutive(return_counts=True)  # bag by bag
    return Occurrences(keys // buckets, keys % buckets, repeats)


def _sorted(keys: Tensor) -> Tensor:
    if keys.device.type == "cpu" and not torch.compiler.is_compiling():  # NumPy sorts them several times faster
        return torch.from_numpy(np.sort(keys.numpy()))
    return keys.sort().values


def _zero_map(width: int, dim: int) -> nn.Linear:
    layer = nn.Linear(width, dim, bias=False)
    nn.init.zeros_(layer.weight)
    return layer
