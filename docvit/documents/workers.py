"""Documents read in worker processes, in order, a few at a time; none of them can take the others down."""

from __future__ import annotations

import faulthandler
import functools
import logging
import multiprocessing
import multiprocessing.util
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, TimeoutError
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import pebble

from docvit.documents.errors import DocumentError, TooLarge, Unreadable
from docvit.documents.errors import Timeout as DocumentTimeout
from docvit.documents.ocr import OCR_SECONDS, require_ocr
from docvit.documents.pages import PageStack, read_document
from docvit.documents.rendering import Rendering
from docvit.documents.sources import Data, Source, as_source
from docvit.documents.spawning import SpawnWithoutMain
from docvit.errors import SettingError

logger = logging.getLogger(__name__)

MEMORY_LIMIT = 2 << 30

# PDFium ends its process by one of these when it gets no more memory; the system's own last resort is SIGKILL.
_OUT_OF_MEMORY = {-getattr(signal, name, 0) for name in ("SIGABRT", "SIGILL", "SIGTRAP", "SIGKILL")}


def read_documents(
    documents: Iterable[Data | Source],
    rendering: Rendering = Rendering(),
    *,
    max_pages: int | None = 64,
    words: bool = False,
    ocr_pages: int = 0,
    workers: int = 2,
    timeout: float | None = 60.0,
    memory_limit: int | None = MEMORY_LIMIT,
    ahead: int = 8,
    password: str | None = None,
    cut_pages: bool = True,
) -> Iterator[PageStack | DocumentError]:
    """Read documents with `read_document`, one result per document, in their order.

    A document that cannot be read gives its error as a result. One that takes longer than `timeout` seconds, to which
    each page that may be read by OCR adds `OCR_SECONDS`, needs more than `memory_limit` bytes (enforced on Linux) or
    crashes its worker costs that worker alone, and a new one follows. At most `workers + ahead` documents are under way
    or waiting to be taken, and `documents` is consumed no faster. Close the iterator to stop the workers early. With
    `workers=0` documents are read in this process, where neither timeout nor memory limit applies; so it is, with a
    warning, in a process that may have no children, as the workers of another pool are.

    Raises:
        ModuleNotFoundError: `ocr_pages` is not 0 and `docvit[ocr]` is not installed; before any document is read.
        ValueError: an item is no document (`docvit.documents.sources.as_source`), or a setting is out of its range.
    """
    if workers < 0:
        raise SettingError(f"workers must be 0 or more, not {workers}")
    limit = _limit_of(max_pages=max_pages, timeout=timeout, ocr_pages=ocr_pages)
    sources = map(as_source, documents)
    options: dict[str, Any] = {"max_pages": max_pages, "words": words, "ocr_pages": ocr_pages, "password": password}
    read = partial(_read, rendering=rendering, cut_pages=cut_pages, **options)
    if workers == 0 or not _may_have_children():
        yield from map(read, sources)
        return
    pool, stop = _new_pool(workers, memory_limit, _start_method())
    waiting: deque[tuple[str, Future[PageStack | DocumentError]]] = deque()
    try:
        for source in sources:
            waiting.append((source.name, _schedule(pool, read, source, limit)))
            if len(waiting) >= workers + ahead:
                yield _outcome(*waiting.popleft(), limit)
        while waiting:
            yield _outcome(*waiting.popleft(), limit)
    finally:
        stop()


def read_alone(
    document: Data | Source,
    rendering: Rendering = Rendering(),
    *,
    max_pages: int | None = 64,
    words: bool = False,
    ocr_pages: int = 0,
    timeout: float | None = 60.0,
    password: str | None = None,
) -> PageStack:
    """Read one document with the limits of `read_documents`, in a worker process that stays for the next one.

    Several threads may call this at once.

    Raises:
        DocumentError: the document cannot be read.
        ValueError: `document` is none, or a setting is out of its range.
    """
    limit = _limit_of(max_pages=max_pages, timeout=timeout, ocr_pages=ocr_pages)
    source = as_source(document)
    read = partial(_read, rendering=rendering, max_pages=max_pages, words=words, ocr_pages=ocr_pages, password=password)
    if _may_have_children():
        key = os.getpid(), _start_method()
        if not _standing_pool(*key).active:
            _standing_pool.cache_clear()
        result = _outcome(source.name, _schedule(_standing_pool(*key), read, source, limit), limit)
    else:
        result = read(source)
    if isinstance(result, DocumentError):
        raise result
    return result


def _limit_of(*, max_pages: int | None, timeout: float | None, ocr_pages: int) -> float | None:
    """Seconds that a document may take. What is wrong with the settings must not be said of the files."""
    if max_pages is not None and (not isinstance(max_pages, int) or max_pages < 1):
        raise SettingError(f"max_pages must be a whole number of at least 1, or None, not {max_pages}")
    if timeout is not None and not timeout > 0:
        raise SettingError(f"timeout must be more than 0 seconds, or None, not {timeout}")
    if ocr_pages:
        require_ocr()
    return None if timeout is None else timeout + OCR_SECONDS * min(ocr_pages, max_pages or ocr_pages)


def _may_have_children() -> bool:
    if not multiprocessing.current_process().daemon:
        return True
    _warn_of_no_workers(os.getpid())
    return False


@functools.cache
def _warn_of_no_workers(process: int) -> None:
    """Once in a process, which may read thousands of documents one by one."""
    logger.warning("this process may have no workers of its own: documents are read in it, without limits (workers=0)")


def _start_method() -> str:
    """Fork on Linux, which is fast, unless the program has chosen to spawn."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return "fork" if sys.platform == "linux" and chosen != "spawn" else "spawn"


def _new_pool(workers: int, memory_limit: int | None, method: str) -> tuple[Any, Callable[[], None]]:
    """A pool, and what stops it, at the latest when this process ends.

    A process that `multiprocessing` started runs nothing of `atexit`: it would wait for these workers for good.
    """
    context: BaseContext = multiprocessing.get_context("fork") if method == "fork" else SpawnWithoutMain()
    pool = pebble.ProcessPool(workers, context=context, initializer=_start_worker, initargs=(memory_limit,))
    return pool, multiprocessing.util.Finalize(None, _stop, args=(pool, context), exitpriority=0)


def _stop(pool: Any, context: BaseContext) -> None:
    pool.stop()
    if isinstance(context, SpawnWithoutMain):
        context.terminate()
    pool.join()


@functools.cache
def _standing_pool(process: int, method: str) -> Any:
    """The workers of `read_alone`; a forked process has its own."""
    return _new_pool(2, MEMORY_LIMIT, method)[0]


def _schedule(pool: Any, read: Callable[..., Any], source: Source, timeout: float | None) -> Future[Any]:
    """Images are pickled here, which loads them: an error of theirs would end the thread of the pool, for good."""
    sent: Source | bytes = source
    if not isinstance(source.content, str | bytes):
        try:
            sent = pickle.dumps(source)
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_result(Unreadable(source.name, f"the image cannot be read ({error}): open it again"))
            return failed
    return pool.schedule(read, args=(sent,), timeout=timeout)


def _read(source: Source | bytes, rendering: Rendering, **options: Any) -> PageStack | DocumentError:
    document: Source = pickle.loads(source) if isinstance(source, bytes) else source
    try:
        return read_document(document, rendering, **options)
    except DocumentError as error:
        return error
    except MemoryError:
        return TooLarge(document.name, "reading it needs more memory than allowed: reduce it")
    except Exception as error:  # whatever a renderer lets through must not cost the other documents
        return Unreadable(document.name, f"the renderer failed on it ({error}): save it again from another program")


def _outcome(name: str, future: Future[PageStack | DocumentError], timeout: float | None) -> PageStack | DocumentError:
    try:
        return future.result()
    except TimeoutError:
        return DocumentTimeout(name, f"reading it took longer than {timeout:g} seconds: save it again or simplify it")
    except pebble.ProcessExpired as error:
        if error.exitcode in _OUT_OF_MEMORY:
            return TooLarge(name, "reading it needs more memory than allowed: save it again or simplify it")
        return Unreadable(name, "the renderer crashed on it: the file is damaged, save it again from another program")


def _start_worker(memory_limit: int | None) -> None:
    # pebble has switched off Ctrl-C, which is the parent's to handle
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


def in_batches(
    read: Iterator[PageStack | DocumentError], rendering: Rendering, budget: int
) -> Iterator[list[PageStack | DocumentError]]:
    """Documents until they have `budget` patches: 1, 2, 4, ... of them at most, so that the first come at once."""
    waiting: list[PageStack | DocumentError] = []
    patches, limit = 0, 1
    for result in read:
        waiting.append(result)
        if isinstance(result, PageStack):
            patches += sum(page.shape[0] * page.shape[1] for page in result.pages) // rendering.multiple**2
        if patches >= budget or len(waiting) >= limit:
            yield waiting
            waiting, patches, limit = [], 0, min(2 * limit, 32)
    if waiting:
        yield waiting
