"""A network, its loss and its batches, small enough to train in a test and to follow to the bit."""

from __future__ import annotations

import os
import signal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from docvit.training.loop import TrainSettings

PLAIN = TrainSettings(epochs=3, lr=0.05, bf16=False, clip=None)


class Pair:
    def __init__(self, x, y):
        self.x, self.y = x, y

    def to(self, device):
        return Pair(self.x.to(device), self.y.to(device))


class Listed:
    """Batches out of a list, in another order every epoch."""

    def __init__(self, count=7, rank=0, world_size=1):
        generator = torch.Generator().manual_seed(5)
        self.pairs = [Pair(torch.randn(4, 6, generator=generator), torch.arange(4) % 3) for _ in range(count)]
        self.rank, self.world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch, skip=0):
        order = np.random.default_rng(epoch).permutation(len(self.pairs))
        self.order = order[self.rank :: self.world_size][skip:]

    def __len__(self):
        return len(range(self.rank, len(self.pairs), self.world_size))

    def __iter__(self):
        return (self.pairs[i] for i in self.order)


def net(dropout=0.3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Dropout(dropout), nn.Linear(8, 3))


def loss(model, pair, progress):
    logits = model(pair.x)
    return {"loss": F.cross_entropy(logits, pair.y), "accuracy": (logits.argmax(1) == pair.y).float().mean()}


def interrupt_at(step, number=signal.SIGINT):
    """The loss, and in its `step`-th call Ctrl-C."""
    calls = iter(range(1, 10**6))

    def interrupting(model, pair, progress):
        if next(calls) == step:
            os.kill(os.getpid(), number)
        return loss(model, pair, progress)

    return interrupting


def weights(*modules):
    return [value.clone() for module in modules for value in module.state_dict().values()]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def without_time(history):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history]
