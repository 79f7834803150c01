"""Pages rendered before training."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import torch.distributed as dist

from docvit.data.labels import DataError
from docvit.documents.cache import PageCache, default_cache
from docvit.documents.errors import DocumentError
from docvit.documents.rendering import Rendering
from docvit.training.distributed import Process

logger = logging.getLogger(__name__)


def render(
    paths: Iterable[str], rendering: Rendering, place: Process, *, cache: Path | None = None, workers: int = 2
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
    paths: Iterable[str],
    rendering: Rendering,
    place: Process,
    *,
    cache: Path | None = None,
    workers: int = 2,
    skip_unreadable: bool = False,
) -> dict[str, Path]:
    """`render`, of documents that must all be readable, unless `skip_unreadable`: then the log lists those left out.

    Raises:
        DataError: some cannot be read; it names every one of them.
    """
    if skip_unreadable:
        return render_readable(paths, rendering, place, cache=cache, workers=workers)[0]
    files, errors = render(paths, rendering, place, cache=cache, workers=workers)
    if errors:
        raise DataError("the documents", [f"{type(e).__name__}: {e}" for e in errors])
    return files


def render_readable(
    paths: Iterable[str], rendering: Rendering, place: Process, *, cache: Path | None = None, workers: int = 2
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
