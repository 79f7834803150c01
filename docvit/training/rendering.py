"""Rendering all pages into the cache before training, once per group of processes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist

from docvit.data.labels import DataError
from docvit.documents.cache import PageCache, default_cache
from docvit.documents.rendering import Rendering
from docvit.training.distributed import Process

logger = logging.getLogger(__name__)


def render(
    paths: Iterable[str],
    rendering: Rendering,
    process: Process,
    *,
    cache: Path | None = None,
    workers: int = 2,
    password: str | None = None,
    ocr_pages: int = 0,
) -> tuple[dict[str, Path], list[str]]:
    """Renders documents: the cache file of each by its path, and one line for each that cannot be read.

    The first process of a group renders, the others wait and read its files. Words are kept with the pages, for models
    that read them. `cache` is a folder; None for `docvit.documents.cache.default_cache`. `password` opens PDFs that
    have one. Of the first `ocr_pages` pages of each, those without a text layer are read by OCR.
    """
    wanted = list(dict.fromkeys(paths))
    pages = PageCache(cache or default_cache(), rendering, words=True, ocr_pages=ocr_pages)
    prepare = partial(pages.prepare, wanted, workers=workers, password=password)
    if process.rank == 0:
        try:
            files, errors = prepare()
        except KeyboardInterrupt:
            logger.warning("stopped before training began: the same command goes on with the pages rendered so far")
            raise
    if process.world_size > 1:
        dist.barrier()
    if process.rank > 0:
        files, errors = prepare()
    return files, [f"{type(e).__name__}: {e}" for e in errors]


def render_all(
    paths: Iterable[str], rendering: Rendering, process: Process, *, skip_unreadable: bool = False, **options: Any
) -> dict[str, Path]:
    """As `render`, for documents that must all be readable; those that are not are left out with `skip_unreadable`.

    Raises:
        DataError: documents that cannot be read; it names all of them.
    """
    if skip_unreadable:
        return render_readable(paths, rendering, process, **options)[0]
    files, problems = render(paths, rendering, process, **options)
    if problems:
        raise DataError("the documents", problems)
    return files


def render_readable(
    paths: Iterable[str], rendering: Rendering, process: Process, **options: Any
) -> tuple[dict[str, Path], list[str]]:
    """As `render`, of which something must be readable; the log counts and lists what is not.

    Raises:
        DataError: none of the documents can be read.
    """
    files, problems = render(paths, rendering, process, **options)
    if not files:
        raise DataError("the documents", problems or ["there are none"])
    if problems and process.rank == 0:
        total = len(files) + len(problems)
        logger.warning("%d of %d documents are left out:\n  %s", len(problems), total, "\n  ".join(problems))
    return files, problems
