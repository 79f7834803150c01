"""`DocumentLoader`: packed batches of a data set, through torch's DataLoader."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from docvit.data.dataset import DocumentBatch, DocumentDataset
from docvit.data.sampling import TokenBudget


class DocumentLoader:
    """Iterates over the packed batches of one epoch of a data set.

    Args:
        budget, shuffle, weights, rank, world_size: see `TokenBudget`.
        workers: processes that load batches; 0 loads them in this process.
        pin_memory: batches come in page-locked memory, for copying to a GPU.
    """

    def __init__(
        self,
        dataset: DocumentDataset,
        *,
        budget: int = 8192,
        shuffle: bool = False,
        weights: np.ndarray | None = None,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.sampler = TokenBudget(
            dataset.tokens(),
            budget,
            shuffle=shuffle,
            weights=weights,
            seed=dataset.seed,
            rank=rank,
            world_size=world_size,
        )
        self.loader = DataLoader(
            dataset,
            batch_sampler=self.sampler,
            collate_fn=dataset.collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_interrupts if workers else None,
            generator=torch.Generator(),  # its own, so that starting an epoch leaves the global generator alone
        )

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The next iteration is epoch `epoch` without its first `skip` batches, which are not loaded."""
        self.sampler.epoch, self.sampler.skip = epoch, skip

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[DocumentBatch]:
        return iter(self.loader)

    def fingerprint(self) -> str:
        """Hash of the documents' contents, labels and weights: a run is resumed on the same data only."""
        names = [document.file.stem for document in self.dataset.documents]
        weights = self.sampler.weights
        drawn = None if weights is None else weights.round(12).tolist()
        parts = [names, self.dataset.labels, drawn]
        if self.dataset.partners is not None:
            parts.append(self.dataset.partners.fingerprint())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _ignore_interrupts(_: int) -> None:
    # Ctrl-C reaches every process of the group; the training loop decides when to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
