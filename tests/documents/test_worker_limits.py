"""What holds inside reading workers: Ctrl-C is not theirs, and their memory limit counts from their birth."""

from __future__ import annotations

import mmap
import os
import signal
import sys

import pytest

from docvit.documents import workers
from docvit.documents.errors import TooLarge
from docvit.documents.pages import PageStack
from docvit.documents.workers import read_documents

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")

MIB = 1 << 20


def test_ctrl_c_does_not_reach_the_workers(monkeypatch):
    def interrupted(source, *args, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return PageStack(source.name, [], [], 1)

    monkeypatch.setattr(workers, "read_document", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background begin by ignoring it
    try:
        results = list(read_documents(["a", "b", "c"], workers=2))
    except KeyboardInterrupt:  # it would end the tests
        pytest.fail("a worker was interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert [type(result) for result in results] == [PageStack] * 3


def test_the_memory_limit_is_what_a_worker_may_take_beyond_what_it_was_born_with(monkeypatch):
    def greedy(source, *args, **options):
        mmap.mmap(-1, int(source.name) * MIB).close()
        return PageStack(source.name, [], [], 1)

    limit = 200
    ballast = mmap.mmap(-1, 2 * limit * MIB)  # the workers inherit more than the limit
    monkeypatch.setattr(workers, "read_document", greedy)
    monkeypatch.setattr(mmap, "mmap", _raising_memory_error(mmap.mmap))
    fits, too_large = read_documents(["100", "300"], workers=1, memory_limit=limit * MIB)
    ballast.close()
    assert isinstance(fits, PageStack)
    assert isinstance(too_large, TooLarge)


def _raising_memory_error(original):
    def mapped(*arguments):
        try:
            return original(*arguments)
        except OSError as error:  # ENOMEM
            raise MemoryError from error

    return mapped
