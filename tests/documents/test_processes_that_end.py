"""A process that reads documents in workers ends, also one that another pool has started."""

from __future__ import annotations

import multiprocessing
import sys

import pytest

from docvit.documents.workers import read_alone, read_documents

OPEN = []


def read(path):
    read_alone(path)
    OPEN.append(read_documents([path] * 3, workers=1))  # a stream that nobody closes
    next(OPEN[0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_process_of_another_pool_ends_with_the_workers_it_has(make_pdf, method):
    if method == "fork" and sys.platform != "linux":
        pytest.skip("forks")
    process = multiprocessing.get_context(method).Process(target=read, args=(str(make_pdf()),))
    process.start()
    process.join(120)
    ended = process.exitcode
    process.kill()
    assert ended == 0
