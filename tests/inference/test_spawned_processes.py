"""Where processes are spawned, as on macOS and Windows: threads, limits, and workers of other pools."""

from __future__ import annotations

import json
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import spawn
from types import SimpleNamespace

from conftest import classed_pdf, pdf_bytes, process

from docvit.documents import workers
from docvit.documents.spawning import SpawnWithoutMain

SCRIPT = """
import json, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import docvit
from docvit.documents.workers import read_alone, read_documents

slow, *paths = sys.argv[1:]

def pages(paths):
    return in_stream(paths), alone(paths[0])

def in_stream(paths):
    return [document.num_pages for document in read_documents(paths)]

def alone(path):
    return read_alone(path).num_pages

def main():
    multiprocessing.set_start_method("spawn")
    said = {}
    with ThreadPoolExecutor(4) as threads:
        said["threads"] = list(threads.map(alone, paths * 3))
        said["streams"] = list(threads.map(in_stream, [paths] * 2))
    try:
        read_alone(slow, timeout=0.3)
    except docvit.DocumentError as error:
        said["limit"] = error.kind
    with multiprocessing.Pool(1) as pool:  # its workers may have no children
        said["pool"] = pool.map(pages, [paths])
    with ProcessPoolExecutor(1) as pool:
        said["executor"] = list(pool.map(pages, [paths]))
    print(json.dumps(said))

if __name__ == "__main__":
    main()
"""


def test_threads_limits_and_workers_of_other_pools_where_processes_are_spawned(tmp_path):
    """Without a model, which would import torch: a classifier reads by these functions alone."""
    kinds = ["text", "bars", "blocks"]
    for number, kind in enumerate(kinds, 1):
        (tmp_path / f"{kind}.pdf").write_bytes(classed_pdf(kind, number))
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "slow.pdf").write_bytes(pdf_bytes(contents=[b"0 0 1 1 re f\n" * 2_000_000]))
    run = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"
    files = [tmp_path / f"{name}.pdf" for name in ("slow", *kinds)]
    out, err = process(run, tmp_path / "script.py", *files).communicate(timeout=600)
    assert json.loads(out or "null") == {
        "threads": [1, 2, 3] * 3,
        "streams": [[1, 2, 3]] * 2,
        "limit": "Timeout",
        "pool": [[[1, 2, 3], 1]],
        "executor": [[[1, 2, 3], 1]],
    }, err
    assert "workers=0" in err


def test_the_main_script_stays_what_it_is_for_processes_that_other_threads_spawn(monkeypatch):
    found = []

    def spawned(_):
        found.append(spawn.get_preparation_data("own"))
        with ThreadPoolExecutor(1) as threads:
            found.append(threads.submit(spawn.get_preparation_data, "other").result())

    monkeypatch.setattr(sys.modules["__main__"], "__file__", __file__, raising=False)  # tests side by side have none
    monkeypatch.setattr("multiprocessing.context.SpawnProcess._Popen", staticmethod(spawned))
    process = SpawnWithoutMain().Process(target=time.sleep, args=(0,))
    process._Popen(process)
    found.append(spawn.get_preparation_data("later"))
    assert [any(key.startswith("init_main") for key in data) for data in found] == [False, True, True]


def test_workers_end_before_their_pool_does():
    """One that is still starting then would find nothing of the pool, and print a traceback."""
    context, found = SpawnWithoutMain(), []
    worker = context.Process(target=time.sleep, args=(60,))
    worker.start()

    def join():
        worker.join(30)
        found.append(worker.exitcode)

    workers._stop(SimpleNamespace(stop=lambda: found.append(worker.exitcode), join=join), context)
    assert found == [None, -signal.SIGTERM]
