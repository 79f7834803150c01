"""Documents read in worker processes, in order, a few at a time; none of them can take the others down."""

from __future__ import annotations

import faulthandler
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, TimeoutError
from functools import partial
from typing import Any

import pebble

from docvit.documents.errors import DocumentError, TooLarge, Unreadable
from docvit.documents.errors import Timeout as DocumentTimeout
from docvit.documents.ocr import require_ocr
from docvit.documents.pages import PageStack, read_document
from docvit.documents.rendering import Rendering

# PDFium ends its process by one of these when it gets no more memory; the system's own last resort is SIGKILL.
_OUT_OF_MEMORY = {-getattr(signal, name, 0) for name in ("SIGABRT", "SIGILL", "SIGTRAP", "SIGKILL")}


def read_documents(
    paths: Iterable[str],
    rendering: Rendering = Rendering(),
    *,
    max_pages: int | None = 64,
    words: bool = False,
    ocr_pages: int = 0,
    workers: int = 2,
    timeout: float | None = 60.0,
    memory_limit: int | None = 2 << 30,
    ahead: int = 8,
) -> Iterator[PageStack | DocumentError]:
    """Read documents with `read_document`, one result a path, in the order of the paths.

    A document that cannot be read gives its error as a result. One that takes longer than `timeout` seconds, needs more
    than `memory_limit` bytes (enforced on Linux) or crashes its worker costs that worker alone: a new one takes its
    place. At most `workers + ahead` documents are under way or waiting to be taken, and `paths` is consumed no faster.
    Close the iterator to stop the workers early. With `workers=0` documents are read in this process, where neither
    timeout nor memory limit applies. Where `ocr_pages` is not 0, `docvit[ocr]` must be installed, or
    ModuleNotFoundError is raised before any document is read.
    """
    if ocr_pages:
        require_ocr()
    read = partial(_read, rendering=rendering, max_pages=max_pages, words=words, ocr_pages=ocr_pages)
    if workers == 0:
        yield from map(read, paths)
        return
    pool = pebble.ProcessPool(
        max_workers=workers,
        context=multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn"),
        initializer=_start_worker,
        initargs=(memory_limit,),
    )
    waiting: deque[tuple[str, Future[PageStack | DocumentError]]] = deque()
    try:
        for path in paths:
            waiting.append((path, pool.schedule(read, args=(path,), timeout=timeout)))
            if len(waiting) >= workers + ahead:
                yield _outcome(*waiting.popleft(), timeout)
        while waiting:
            yield _outcome(*waiting.popleft(), timeout)
    finally:
        pool.stop()
        pool.join()


def _read(path: str, rendering: Rendering, **options: Any) -> PageStack | DocumentError:
    try:
        return read_document(path, rendering, **options)
    except DocumentError as error:
        return error
    except MemoryError:
        return TooLarge(path, "reading it needs more memory than allowed: reduce it")
    except Exception as error:  # whatever a renderer lets through must not cost the other documents
        return Unreadable(path, f"the renderer failed on it ({error}): save it again from another program")


def _outcome(path: str, future: Future[PageStack | DocumentError], timeout: float | None) -> PageStack | DocumentError:
    try:
        return future.result()
    except TimeoutError:
        return DocumentTimeout(path, f"reading it took longer than {timeout:g} seconds: save it again or simplify it")
    except pebble.ProcessExpired as error:
        if error.exitcode in _OUT_OF_MEMORY:
            return TooLarge(path, "reading it needs more memory than allowed: save it again or simplify it")
        return Unreadable(path, "the renderer crashed on it: the file is damaged, save it again from another program")


def _start_worker(memory_limit: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would wait until PDFium returns
    faulthandler.disable()  # a crash becomes the document's error, not a report
    _limit_memory(memory_limit)


def _limit_memory(limit: int | None) -> None:
    """Hold this process to `limit` bytes above the address space that it was born with."""
    if limit is None or sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        inherited = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    total = inherited + limit
    resource.setrlimit(resource.RLIMIT_AS, (total if hard == resource.RLIM_INFINITY else min(total, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
