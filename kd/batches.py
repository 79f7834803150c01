"""Batches for the engine: an ordinary DataLoader as the training loop wants it, and epochs that count on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from docvit.training.loop import Batches
from kd.config import DistillationError


@dataclass(frozen=True)
class TensorBatch:
    """Inputs of any shape (B, ...), under the name that the engine knows for them, and labels (B,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> TensorBatch:
        return TensorBatch(self.images.to(device), self.labels.to(device))


class LoaderBatches:
    """A `torch.utils.data.DataLoader` of (inputs, labels), as `docvit.training.loop.fit` wants its batches.

    Order and transforms of an epoch depend on (seed, epoch) alone, as far as they are drawn from torch's generator or
    from one that the loader or its sampler was given. So a resumed run goes on with the batches it would have had; the
    first `skip` of them are loaded and dropped. (Workers that are kept between epochs are not seeded anew.)
    """

    def __init__(self, loader: DataLoader[Any], seed: int = 0) -> None:
        self.loader, self.seed = loader, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[TensorBatch]:
        (seed,) = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1)
        samplers = [getattr(self.loader.batch_sampler, "sampler", None), self.loader.batch_sampler, self.loader.sampler]
        for sampler in samplers:
            if isinstance(sampler, DistributedSampler):
                sampler.set_epoch(self.epoch)
        for generator in (self.loader.generator, *(getattr(sampler, "generator", None) for sampler in samplers)):
            if generator is not None:
                generator.manual_seed(int(seed))
        state = torch.Generator().manual_seed(int(seed)).get_state()
        batches: Iterator[Any] | None = None
        for step in range(len(self)):
            # the loader draws from a generator state of its own, and leaves that of the training loop as it is
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(state)
                batches = iter(self.loader) if batches is None else batches
                batch = next(batches, None)
                state = torch.get_rng_state()
            if batch is None:
                return
            if step >= self.skip:
                yield _pair(batch)


def _pair(batch: Any) -> TensorBatch:
    if not isinstance(batch, (list, tuple)) or len(batch) != 2:
        raise DistillationError(f"the DataLoader must give (inputs, labels), not {type(batch).__name__}")
    return TensorBatch(*batch)


def as_batches(data: Batches | DataLoader[Any], seed: int = 0) -> Batches:
    """A DataLoader as `LoaderBatches`, anything else as it is."""
    return LoaderBatches(data, seed) if isinstance(data, DataLoader) else data


class LaterEpochs:
    """Batches that begin to count at a later epoch."""

    def __init__(self, batches: Batches, first_epoch: int) -> None:
        self.batches, self.first_epoch, self.epoch = batches, first_epoch, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch = epoch
        self.batches.set_epoch(epoch + self.first_epoch, skip)

    def fingerprint(self) -> str | None:
        fingerprint = getattr(self.batches, "fingerprint", None)  # batches need not have one
        return None if fingerprint is None else str(fingerprint())
