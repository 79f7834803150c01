"""Batches by token budget, class and group balancing, and partner documents for mixed pages."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from docvit.data.labels import LabelledDocuments
from docvit.errors import SettingError

Key = tuple[int, int]  # epoch, index in the data set


class Partners:
    """Draws for a document a partner of the same class and another group, in the proportions of `balance`.

    Args:
        labels: (documents,) class indices.
        groups: (documents,) sources; None if each document is a source of its own.
    """

    def __init__(self, labels: Sequence[int], groups: Sequence[str] | None) -> None:
        self.labels = np.array(labels)
        self.groups = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
        keys = list(zip(self.labels.tolist(), self.groups.tolist(), strict=True))
        sizes = Counter(keys)
        self.weights = np.array([sizes[key] ** -0.5 for key in keys])

    def fingerprint(self) -> str:
        """Hash of labels and groups, which decide who is drawn."""
        return hashlib.sha256(json.dumps([self.labels.tolist(), self.groups.tolist()]).encode()).hexdigest()

    def draw(self, index: int, random: np.random.Generator) -> int | None:
        """The index of a partner of document `index`; None if it has none."""
        alike = (self.labels == self.labels[index]) & (self.groups != self.groups[index])
        (others,) = alike.nonzero()
        weights = self.weights[others]
        return int(random.choice(others, p=weights / weights.sum())) if len(others) else None


class TokenBudget(Sampler[list[Key]]):
    """Batches of about `budget` tokens; every epoch has the same number of batches, so that schedules can be planned.

    Args:
        tokens: (documents,) number of tokens of each document.
        budget: mean number of tokens per batch.
        shuffle: a new order every epoch, from `seed`.
        weights: (documents,) draw with replacement in these proportions instead of shuffling; see `balance`.
        rank, world_size: this process and the number of processes that share the batches.

    Raises:
        ValueError: there are fewer documents than processes.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        budget: int,
        *,
        shuffle: bool,
        weights: np.ndarray | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.tokens, self.shuffle, self.seed, self.rank, self.world_size = tokens, shuffle, seed, rank, world_size
        self.weights = None if weights is None else weights / weights.sum()
        if len(tokens) < world_size:
            raise SettingError(f"{len(tokens)} documents cannot be shared among {world_size} processes")
        count = min(len(tokens), max(world_size, round(float(tokens.sum()) / budget)))
        self.count = count - count % world_size  # the same number for each process
        self.epoch, self.skip = 0, 0

    def __len__(self) -> int:
        return self.count // self.world_size

    def __iter__(self) -> Iterator[list[Key]]:
        order = np.arange(len(self.tokens))
        random = np.random.default_rng((self.seed, self.epoch))
        if self.weights is not None:
            order = random.choice(order, len(order), p=self.weights)
        elif self.shuffle:
            order = random.permutation(order)
        filled = self.tokens[order].cumsum()
        batch_of = ((filled - self.tokens[order] / 2) * self.count / filled[-1]).astype(int)
        batches = [order[batch_of == i] for i in range(self.count)]
        if not all(len(batch) for batch in batches):  # one document larger than a whole batch
            batches = np.array_split(order, self.count)
        for batch in batches[self.rank :: self.world_size][self.skip : len(self)]:
            yield [(self.epoch, int(index)) for index in batch]


def balance(documents: LabelledDocuments) -> np.ndarray:
    """Sampling weights (documents,): classes equally often, and within a class a group by the square root of its size.

    A large source then does not decide alone what its class looks like.
    """
    weights = Partners(documents.labels, documents.groups).weights
    totals = np.bincount(documents.labels, weights)
    return weights / totals[list(documents.labels)]
