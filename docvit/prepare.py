"""What comes before any training on documents: a place to train at, rendered pages, and batches of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from docvit.cache import PageCache, default_cache
from docvit.data import Batches, DataError, DocumentDataset, View
from docvit.hardware import choose_device, default_device
from docvit.model import DocViTConfig
from docvit.pages import DocumentError, Rendering

logger = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a process trains, and which of how many processes it is."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


@contextmanager
def process_group(device: torch.device | str | None = None) -> Iterator[Place]:
    """This process alone on `device`, or its place in the group that `torchrun` set up.

    Raises:
        ValueError: this machine has no such device.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Place(choose_device(device))
        return
    on_gpu = str(device or default_device()).startswith("cuda")
    place = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else device)
    if on_gpu:
        torch.cuda.set_device(place)
    # the first process draws all pages before the others go on, which may take longer than the usual ten minutes
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield Place(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def render(
    paths: Iterable[str], rendering: Rendering, place: Place, *, cache: Path | None = None, workers: int = 2
) -> tuple[dict[str, Path], list[DocumentError]]:
    """The file of rendered pages of every document by its path, and the errors of those that cannot be read.

    Pages are rendered once, by the first process of a group, into `cache` (`docvit.cache.default_cache`).
    """
    wanted = list(dict.fromkeys(paths))
    pages = PageCache(cache or default_cache(), rendering)
    if place.rank == 0:
        try:
            files, errors = pages.prepare(wanted, workers=workers)
        except KeyboardInterrupt:
            logger.warning("stopped before training began: the same command goes on with the pages drawn so far")
            raise
    if place.world_size > 1:
        dist.barrier()
    if place.rank > 0:
        files, errors = pages.prepare(wanted, workers=workers)
    return files, errors


def render_all(
    paths: Iterable[str], rendering: Rendering, place: Place, *, cache: Path | None = None, workers: int = 2
) -> dict[str, Path]:
    """`render`, of documents that must all be readable.

    Raises:
        DataError: some cannot be read; it names every one of them.
    """
    files, errors = render(paths, rendering, place, cache=cache, workers=workers)
    if errors:
        raise DataError("the documents", [f"{type(e).__name__}: {e}" for e in errors])
    return files


def render_readable(
    paths: Iterable[str], rendering: Rendering, place: Place, *, cache: Path | None = None, workers: int = 2
) -> tuple[dict[str, Path], list[str]]:
    """`render`, and a line for each document that cannot be read; the log counts and lists them too.

    Raises:
        DataError: none of the documents can be read.
    """
    files, errors = render(paths, rendering, place, cache=cache, workers=workers)
    problems = [f"{type(e).__name__}: {e}" for e in errors]
    if not files:
        raise DataError("the documents", problems or ["there are none"])
    if problems and place.rank == 0:
        total = len(files) + len(problems)
        logger.warning("%d of %d documents are left out:\n  %s", len(problems), total, "\n  ".join(problems))
    return files, problems


def view_of(config: DocViTConfig, **changes: Any) -> View:
    """How a model of `config` sees documents; `changes` are further fields of `View`, for training."""
    return View(config.rendering, config.mean, config.std, **changes)


def training_batches(
    files: Sequence[Path],
    labels: Sequence[int] | None,
    view: View,
    place: Place,
    *,
    budget: int,
    seed: int,
    groups: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
) -> Batches:
    """Shuffled batches of about `budget` tokens, this process's share; without labels all of them are `UNLABELLED`.

    `weights` draw documents with replacement instead, see `docvit.data.balance`.
    """
    dataset = DocumentDataset(files, labels, view, groups=groups, seed=seed)
    return shuffled(dataset, place, budget=budget, weights=weights)


def shuffled(dataset: DocumentDataset, place: Place, *, budget: int, weights: np.ndarray | None = None) -> Batches:
    """`training_batches` of a data set."""
    return Batches(
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
