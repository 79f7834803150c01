"""Cached documents as training samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from docvit.data.augment import Augmentation, augment
from docvit.data.sampling import Key, Partners, put_after
from docvit.documents.cache import CachedDocument
from docvit.documents.pages import PageStack, spread
from docvit.documents.patches import PatchSequence, pack
from docvit.documents.rendering import Rendering
from docvit.model.config import DocViTConfig

UNLABELLED = -1


@dataclass(frozen=True)
class DocumentBatch:
    """A packed batch with its labels (B,) and the documents' places in the data set (B,)."""

    sequence: PatchSequence
    labels: Tensor
    index: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> DocumentBatch:
        return DocumentBatch(
            self.sequence.to(device, non_blocking),
            self.labels.to(device, non_blocking=non_blocking),
            self.index.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> DocumentBatch:
        return DocumentBatch(self.sequence.pin_memory(), self.labels.pin_memory(), self.index.pin_memory())


@dataclass(frozen=True)
class View:
    """How a document is seen: the pixels' normalisation, which pages, and what is changed on them in training.

    Attributes:
        max_pages: pages of a document that are read; in training a random choice, else spread evenly.
        augmentation: changes to the pages; None outside training.
        patch_dropout: largest share of patches left out at random in training; how many is drawn for each document.
        mix_pages: share of documents whose later pages are, in training, those of another of their class, from another
            source; of any other where there are no labels.
    """

    rendering: Rendering
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    max_pages: int = 64
    augmentation: Augmentation | None = None
    patch_dropout: float = 0.0
    mix_pages: float = 0.0
    training: bool = field(default=False)


class DocumentDataset(Dataset[tuple[int, int, PageStack]]):
    """Cached documents by (epoch, place): what is drawn at random depends on nothing but the seed and that key.

    Without labels every document's is `UNLABELLED`. Data sets that differ in `draw` alone show the same pages at the
    same keys, changed and thinned out in other ways.

    Args:
        groups: the source of each document, for `View.mix_pages`; without, each is its own.
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
        epoch, place = key
        stack, partner = self.see(epoch, place), self.partner(epoch, place)
        if partner is not None:
            pages = put_after(stack.pages, self.see(epoch, partner).pages)
            stack = stack._replace(pages=pages, indices=stack.indices[: len(pages)])
        return place, epoch, stack

    def see(self, epoch: int, place: int) -> PageStack:
        """The pages of one document in one epoch, changed."""
        document, view = self.documents[place], self.view
        random = np.random.default_rng((self.seed, epoch, place))
        stack = document.load(self._choose(document, random))
        if self.draw:
            random = np.random.default_rng((self.seed, epoch, place, 2 * self.draw))
        if view.augmentation is not None:
            changed = augment([np.asarray(page) for page in stack.pages], view.augmentation, random)
            mean, std = (torch.tensor(v)[:, None, None] for v in (view.mean, view.std))
            normalised = [(page - mean) / std for page in changed]  # float tensors, which `pack` takes as they are
            stack = stack._replace(pages=normalised)
        return stack

    def partner(self, epoch: int, place: int) -> int | None:
        """The document whose later pages this one has in this epoch; None for its own."""
        if self.partners is None or min(self.view.max_pages, len(self.documents[place].indices)) == 1:
            return None
        # by five numbers: four that end with 0 are as good as three
        random = np.random.default_rng((self.seed, epoch, place, 0, 1))
        return self.partners.draw(place, random) if random.random() < self.view.mix_pages else None

    def _choose(self, document: CachedDocument, random: np.random.Generator) -> list[int]:
        count = min(self.view.max_pages, len(document.indices))
        if not self.view.training:
            return [document.indices[i] for i in spread(len(document.indices), count)]
        # the first page is always read in use, and often says most
        first, *others = document.indices
        return [first, *sorted(random.choice(others, count - 1, replace=False).tolist())] if count > 1 else [first]

    def tokens(self) -> np.ndarray:
        """About how many tokens each document brings to a batch, class tokens included."""
        limit, keep = self.view.max_pages, 1 - self.view.patch_dropout / 2
        return np.array([min(limit, len(d.kept)) * (1 + keep * float(np.mean(d.kept))) for d in self.documents])

    def collate(self, samples: list[tuple[int, int, PageStack]]) -> DocumentBatch:
        sequence = self.pack([stack for _, _, stack in samples])
        if self.view.patch_dropout:
            counts = sequence.page_bounds[sequence.document_bounds].diff().tolist()
            keep = [self._thin(epoch, place, count) for (place, epoch, _), count in zip(samples, counts, strict=True)]
            sequence = sequence.select(torch.from_numpy(np.concatenate(keep)))
        index = torch.tensor([place for place, _, _ in samples])
        return DocumentBatch(sequence, torch.tensor([self.labels[place] for place, _, _ in samples]), index)

    def pack(self, stacks: Sequence[PageStack]) -> PatchSequence:
        """A packed batch of documents as `see` gives them."""
        view, channels = self.view, 1 if self.view.rendering.mode == "L" else 3
        return pack(stacks, view.rendering.multiple, channels=channels, mean=view.mean, std=view.std)

    def _thin(self, epoch: int, place: int, count: int) -> np.ndarray:
        """(count,) which of a document's patches are kept: sometimes nearly all, as in use, sometimes few."""
        random = np.random.default_rng((self.seed, epoch, place, 2 * self.draw + 1))
        return random.random(count) >= self.view.patch_dropout * random.random()


def view_of(config: DocViTConfig, **changes: Any) -> View:
    """How a model of `config` sees documents; `changes` are further fields of `View`, for training."""
    return View(config.rendering, config.mean, config.std, **changes)
