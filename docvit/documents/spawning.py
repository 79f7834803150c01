"""Processes spawned without running the main script again, so that it needs no guard (`__name__ == "__main__"`)."""

from __future__ import annotations

import threading
import weakref
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

_OF_MAIN = ("init_main_from_name", "init_main_from_path")

_of_thread = threading.local()
_prepare = spawn.get_preparation_data


def _preparation_data(name: str) -> dict[str, Any]:
    """The data that a spawned process starts from; in a thread that spawns one of ours, without the main script.

    Other threads may spawn processes of the program's own meanwhile: those need it, so that it cannot be hidden.
    """
    data = _prepare(name)
    if getattr(_of_thread, "without_main", False):
        data = {key: value for key, value in data.items() if key not in _OF_MAIN}
    return data


spawn.get_preparation_data = _preparation_data


class _SpawnedProcess(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        _of_thread.without_main = True
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            _of_thread.without_main = False


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
