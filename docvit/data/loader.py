"""DocumentLoader of a data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader

from docvit.data.dataset import DocumentBatch, DocumentDataset
from docvit.data.sampling import TokenBudget


class DocumentLoader:
    """DocumentLoader of a data set, an epoch at a time, through torch's DataLoader."""

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
            generator=torch.Generator(),  # else every epoch begun, also a resumed one, draws from the global one
        )

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The next iteration gives epoch `epoch`, without its first `skip` batches (they are not even loaded)."""
        self.sampler.epoch, self.sampler.skip = epoch, skip

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[DocumentBatch]:
        return iter(self.loader)

    def fingerprint(self) -> str:
        """Of the documents' contents, labels and weights: a run may only be resumed on the same."""
        names = [document.file.stem for document in self.dataset.documents]
        weights = self.sampler.weights
        drawn = None if weights is None else weights.round(12).tolist()
        parts = [names, self.dataset.labels, drawn]
        if self.dataset.partners is not None:
            parts.append(self.dataset.partners.fingerprint())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _ignore_interrupts(_: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the loop decides when to stop
    torch.set_num_threads(1)
