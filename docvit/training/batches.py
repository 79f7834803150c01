"""Batches of a recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from docvit.data.dataset import DocumentDataset, View, view_of
from docvit.data.labels import LabelledDocuments
from docvit.data.loader import DocumentLoader
from docvit.data.sampling import balance
from docvit.model.config import DocViTConfig
from docvit.training.distributed import Process
from docvit.training.recipe import Recipe


def training_batches(
    files: Sequence[Path],
    labels: Sequence[int] | None,
    view: View,
    place: Process,
    *,
    budget: int,
    seed: int,
    groups: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
) -> DocumentLoader:
    """Shuffled batches of about `budget` tokens, this process's share; without labels all of them are `UNLABELLED`.

    `weights` draw documents with replacement instead, see `docvit.data.balance`.
    """
    dataset = DocumentDataset(files, labels, view, groups=groups, seed=seed)
    return shuffled(dataset, place, budget=budget, weights=weights)


def shuffled(
    dataset: DocumentDataset, place: Process, *, budget: int, weights: np.ndarray | None = None
) -> DocumentLoader:
    """`training_batches` of a data set."""
    return DocumentLoader(
        dataset,
        budget=budget,
        shuffle=True,
        weights=weights,
        workers=loader_workers(place.device),
        rank=place.rank,
        world_size=place.world_size,
        pin_memory=place.device.type == "cuda",
    )


def loader_workers(device: torch.device) -> int:
    """Processes that load batches: on the CPU none, the model wants all cores itself."""
    return min(8, max(0, (os.cpu_count() or 1) - 2)) if device.type == "cuda" else 0


def labelled_batches(
    data: LabelledDocuments, files: Mapping[str, Path], config: DocViTConfig, recipe: Recipe, place: Process
) -> DocumentLoader:
    """The training batches of a recipe: `data` as a model of `config` sees it, from rendered `files` by path."""
    return training_batches(
        [files[p] for p in data.paths],
        data.labels,
        training_view(config, recipe),
        place,
        budget=recipe.budget,
        seed=recipe.train.seed,
        groups=data.groups,
        weights=balance(data) if recipe.balanced else None,
    )


def held_out_batches(
    data: LabelledDocuments, files: Mapping[str, Path], config: DocViTConfig, recipe: Recipe
) -> DocumentLoader:
    """Batches to evaluate on: whole documents, unchanged, in their order."""
    return DocumentLoader(
        DocumentDataset([files[p] for p in data.paths], data.labels, view_of(config)), budget=4 * recipe.budget
    )


def training_view(config: DocViTConfig, recipe: Recipe) -> View:
    """What a model of `config` sees of a document while it is trained under `recipe`."""
    return view_of(
        config,
        max_pages=recipe.max_pages,
        augmentation=recipe.augmentation,
        patch_dropout=recipe.patch_dropout,
        mix_pages=recipe.mix_pages,
        training=True,
    )
