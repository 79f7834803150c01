"""Training and evaluation batches of a recipe."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from docvit.data.dataset import DocumentDataset, View, view_of
from docvit.data.labels import LabelledDocuments
from docvit.data.loader import DocumentLoader
from docvit.data.sampling import balance
from docvit.model.config import DocViTConfig
from docvit.training.distributed import Process
from docvit.training.recipe import Recipe

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")

LEAST_SHARED = 2**30  # bytes; two batches ahead for each of eight processes, and those of teachers


def labelled_batches(
    data: LabelledDocuments, files: Mapping[str, Path], config: DocViTConfig, recipe: Recipe, process: Process
) -> DocumentLoader:
    """The training batches of a recipe: `data` as a model of `config` sees it, from rendered `files` by path."""
    pages, view = [files[path] for path in data.paths], training_view(config, recipe)
    dataset = DocumentDataset(pages, data.labels, view, groups=data.groups, seed=recipe.train.seed)
    return shuffled(dataset, process, budget=recipe.budget, weights=balance(data) if recipe.balanced else None)


def held_out_batches(
    data: LabelledDocuments, files: Mapping[str, Path], config: DocViTConfig, recipe: Recipe
) -> DocumentLoader:
    """Batches to evaluate on: whole documents, unchanged, in their order."""
    dataset = DocumentDataset([files[path] for path in data.paths], data.labels, view_of(config))
    return DocumentLoader(dataset, budget=4 * recipe.budget)


def training_view(config: DocViTConfig, recipe: Recipe) -> View:
    """How a model of `config` sees documents while it is trained under `recipe`."""
    return view_of(
        config,
        max_pages=recipe.max_pages,
        augmentation=recipe.augmentation,
        patch_dropout=recipe.patch_dropout,
        mix_pages=recipe.mix_pages,
        lose_words=recipe.lose_words,
        word_dropout=recipe.word_dropout,
        training=True,
    )


def shuffled(
    dataset: DocumentDataset, process: Process, *, budget: int, weights: np.ndarray | None = None
) -> DocumentLoader:
    """This process's share of shuffled batches of about `budget` tokens.

    `weights` (documents,) draw documents with replacement instead (`docvit.data.sampling.balance`).
    """
    return DocumentLoader(
        dataset,
        budget=budget,
        shuffle=True,
        weights=weights,
        workers=loader_workers(process.device),
        rank=process.rank,
        world_size=process.world_size,
        pin_memory=process.device.type == "cuda",
    )


def loader_workers(device: torch.device) -> int:
    """Number of processes that load batches: none on the CPU, where the model uses all cores itself.

    Nor where shared memory, in which batches cross, is as small as in most containers: a full one ends processes.
    """
    if device.type != "cuda":
        return 0
    if SHARED_MEMORY.is_dir() and (free := shutil.disk_usage(SHARED_MEMORY).free) < LEAST_SHARED:
        logger.warning(
            "batches are loaded without further processes, which is slower: %s has %d MB free of the %d MB that they "
            "need (containers: --shm-size)", SHARED_MEMORY, free >> 20, LEAST_SHARED >> 20,
        )  # fmt: skip
        return 0
    return min(8, max(0, (os.cpu_count() or 1) - 2))


@dataclass
class Shuffled:
    """Batches of `size` of `count` items, in another order in each epoch; `take` makes a batch of their indices."""

    count: int
    size: int
    take: Callable[[Tensor], Any]
    seed: int
    epoch: int = 0

    def __len__(self) -> int:
        return -(-self.count // self.size)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        random = torch.Generator().manual_seed(1000 * self.seed + self.epoch)
        return map(self.take, torch.randperm(self.count, generator=random).split(self.size))
