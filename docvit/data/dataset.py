"""Rendered documents as samples for training and evaluation, and how a model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from docvit.data.augment import Augmentation, augment
from docvit.data.sampling import Key, Partners
from docvit.documents.cache import CachedDocument
from docvit.documents.pages import PageStack, spread
from docvit.documents.patches import PatchSequence, pack
from docvit.documents.rendering import Rendering
from docvit.documents.words import Words
from docvit.model.config import DocViTConfig

UNLABELLED = -1


@dataclass(frozen=True)
class DocumentBatch:
    """A packed batch of B documents with their labels (B,) and their indices in the data set (B,)."""

    sequence: PatchSequence
    labels: Tensor
    index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DocumentBatch:
        sequence = self.sequence.to(device, non_blocking)
        labels, index = (x.to(device, non_blocking=non_blocking) for x in (self.labels, self.index))
        return DocumentBatch(sequence, labels, index)

    def pin_memory(self) -> DocumentBatch:
        return DocumentBatch(self.sequence.pin_memory(), self.labels.pin_memory(), self.index.pin_memory())


@dataclass(frozen=True)
class View:
    """How documents are seen: rendering, normalisation, choice of pages, and random changes in training.

    Attributes:
        rendering: how pages were rendered.
        mean, std: normalisation of pixels in 0..1, per channel or one for all.
        max_pages: largest number of pages of a document; in training a random choice, else spread evenly.
        augmentation: random changes to the pages; None outside training.
        patch_dropout: largest share of patches that are dropped at random; the share is drawn for each document.
        mix_pages: in training, share of documents whose later pages are replaced by those of a partner: another
            document of the class from another source. Without labels any other document is a partner.
        words: give the model the words of the pages.
        lose_words: in training, share of documents that lose all their words, as a scan does.
        word_dropout: in training, largest share of the words that are dropped one by one; the share is drawn for each
            document.
        training: choose pages at random and mix them.
    """

    rendering: Rendering
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    max_pages: int = 64
    augmentation: Augmentation | None = None
    patch_dropout: float = 0.0
    mix_pages: float = 0.0
    words: bool = False
    lose_words: float = 0.0
    word_dropout: float = 0.0
    training: bool = False


class DocumentDataset(Dataset[tuple[int, int, PageStack]]):
    """Rendered documents by (epoch, index): all random choices depend on the seed and this key alone.

    Args:
        files: rendered pages of each document, from a `PageCache`.
        labels: class index of each document; None for documents without labels, which are all `UNLABELLED`.
        groups: source of each document, for `View.mix_pages`; None if each document is a source of its own.
        seed: random seed.
        draw: data sets that differ in `draw` alone give the same pages, with other augmentation and patch dropout.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        view: View,
        *,
        groups: Sequence[str] | None = None,
        seed: int = 0,
        draw: int = 0,
    ) -> None:
        self.documents = [CachedDocument.open(file) for file in files]
        self.labels = [UNLABELLED] * len(files) if labels is None else list(labels)
        self.view, self.seed, self.draw = view, seed, draw
        self.partners = Partners(self.labels, groups) if view.training and view.mix_pages else None

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, key: Key) -> tuple[int, int, PageStack]:
        """(index, epoch, pages) of one document in one epoch."""
        epoch, index = key
        stack, partner = self._load(epoch, index), self.partner(epoch, index)
        other = stack if partner is None else self._load(epoch, partner)
        if len(other.pages) > 1:  # a partner of one page has no later ones to give
            count = min(len(stack.pages), len(other.pages))
            pages, words = [stack.pages[0], *other.pages[1:count]], [*stack.words[:1], *other.words[1:count]]
            stack = stack._replace(pages=pages, words=words, indices=stack.indices[:count])
        if self.view.training and self.view.words:
            stack = stack._replace(words=self._drop_words(stack.words, epoch, index))
        return index, epoch, stack

    def partner(self, epoch: int, index: int) -> int | None:
        """Index of the document whose later pages this one gets in this epoch; None where it keeps its own."""
        if self.partners is None or min(self.view.max_pages, len(self.documents[index].indices)) == 1:
            return None
        # a stream of its own: a fifth number, since NumPy takes a key of four that ends with 0 for one of three
        random = np.random.default_rng((self.seed, epoch, index, 0, 1))
        return self.partners.draw(index, random) if random.random() < self.view.mix_pages else None

    def _load(self, epoch: int, index: int) -> PageStack:
        """The chosen pages of one document, augmented."""
        document = self.documents[index]
        random = np.random.default_rng((self.seed, epoch, index))
        stack = document.load(self._choose(document, random))
        if self.draw:
            random = np.random.default_rng((self.seed, epoch, index, 2 * self.draw))
        return self.augment(stack, random)

    def augment(self, stack: PageStack, random: np.random.Generator) -> PageStack:
        """The pages of one document under the view's augmentation, normalised; as they are without any."""
        view = self.view
        if view.augmentation is None:
            return stack
        changed = augment([np.asarray(page) for page in stack.pages], view.augmentation, random)
        mean, std = (torch.tensor(v)[:, None, None] for v in (view.mean, view.std))
        return stack._replace(pages=[(page - mean) / std for page in changed])  # `pack` takes them as they are

    def _choose(self, document: CachedDocument, random: np.random.Generator) -> list[int]:
        """Page indices: evenly spread, in training the first page and random others."""
        count = min(self.view.max_pages, len(document.indices))
        if not self.view.training:
            return [document.indices[i] for i in spread(len(document.indices), count)]
        # the first page is always read in use, and is often the most telling one
        first, *others = document.indices
        return [first, *sorted(random.choice(others, count - 1, replace=False).tolist())] if count > 1 else [first]

    def _drop_words(self, words: Sequence[Words], epoch: int, index: int) -> list[Words]:
        """The words of a document's pages without those that are dropped: sometimes all, sometimes some."""
        random = np.random.default_rng((self.seed, epoch, index, 2 * self.draw, 2))  # a stream of its own
        if random.random() < self.view.lose_words:
            return [Words() for _ in words]
        share = self.view.word_dropout * random.random()
        return [page.select(random.random(len(page)) >= share) for page in words]

    def tokens(self) -> np.ndarray:
        """(documents,) approximate number of tokens of each document, class tokens included."""
        limit, keep = self.view.max_pages, 1 - self.view.patch_dropout / 2
        return np.array([min(limit, len(d.kept)) * (1 + keep * float(np.mean(d.kept))) for d in self.documents])

    def collate(self, samples: list[tuple[int, int, PageStack]]) -> DocumentBatch:
        """Packs samples into a batch and drops patches at random."""
        view = self.view
        sequence = self.pack([stack for _, _, stack in samples])
        if view.patch_dropout:
            counts = sequence.page_bounds[sequence.document_bounds].diff().tolist()
            keep = [self._keep(epoch, index, count) for (index, epoch, _), count in zip(samples, counts, strict=True)]
            sequence = sequence.select(torch.from_numpy(np.concatenate(keep)))
        indices = [index for index, _, _ in samples]
        return DocumentBatch(sequence, torch.tensor([self.labels[i] for i in indices]), torch.tensor(indices))

    def pack(self, stacks: Sequence[PageStack]) -> PatchSequence:
        """Documents as the view shows them, packed."""
        view, channels = self.view, 1 if self.view.rendering.mode == "L" else 3
        options: dict[str, Any] = {"channels": channels, "mean": view.mean, "std": view.std, "words": view.words}
        return pack(stacks, view.rendering.multiple, **options)

    def _keep(self, epoch: int, index: int, count: int) -> np.ndarray:
        """(count,) which patches of a document are kept: sometimes nearly all, as in use, sometimes few."""
        random = np.random.default_rng((self.seed, epoch, index, 2 * self.draw + 1))
        return random.random(count) >= self.view.patch_dropout * random.random()


def view_of(config: DocViTConfig, **changes: Any) -> View:
    """How a model of `config` sees documents; `changes` are further fields of `View`, for training."""
    return View(config.rendering, config.mean, config.std, words=bool(config.words), **changes)
