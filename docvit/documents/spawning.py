"""Processes spawned without running the main script again, so that it needs no guard (`__name__ == "__main__"`)."""

from __future__ import annotations

import sys
import threading
import types
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_LOCK = threading.Lock()


class _SpawnedProcess(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _without_main():
            return SpawnProcess._Popen(process_obj)


class SpawnWithoutMain(SpawnContext):
    """Spawns processes that need nothing of the main script."""

    def __init__(self) -> None:
        super().__init__()
        self._spawned: weakref.WeakSet[_SpawnedProcess] = weakref.WeakSet()

    def Process(self, *arguments: Any, **options: Any) -> _SpawnedProcess:  # type: ignore[override]
        process = _SpawnedProcess(*arguments, **options)
        self._spawned.add(process)
        return process

    def terminate(self) -> None:
        """Ends the processes that still run. One that is starting would print a traceback when its pool is gone."""
        for process in list(self._spawned):
            if process.is_alive():
                process.terminate()


@contextmanager
def _without_main() -> Iterator[None]:
    with _LOCK:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main
