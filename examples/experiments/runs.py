"""Shared by the experiments: runs by name, none repeated, several side by side."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from docvit.errors import UserError
from docvit.model.variants import BASELINES
from kd.cifar10.results import Results, describe_device, versions

Task = Callable[..., Mapping[str, Any]]


def parser(description: str | None, *, seeds: int = 3) -> argparse.ArgumentParser:
    """With the options that every experiment has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, required=True, help="folder of results.json; runs in it are kept")
    options.add_argument("--seeds", type=int, default=seeds)
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side, each on one core")
    options.add_argument("--only", nargs="*", help="runs whose names contain one of these")
    return options


def run_all(results: Results, tasks: Mapping[str, tuple[Any, ...]], run: Task, options: argparse.Namespace) -> None:
    """Calls `run(*arguments)` for every name that `results` does not hold yet; each is kept as soon as it is done."""
    absent = {name: task for name, task in tasks.items() if name not in results.runs and wanted(name, options.only)}
    for name, found in tqdm(_finished(absent, run, options.jobs), total=len(absent), unit="run", disable=None):
        results.add(name, found)
        tqdm.write(f"{name}: {_summary(found)}")


def _finished(tasks: Mapping[str, tuple[Any, ...]], run: Task, jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
    if jobs <= 1 or len(tasks) <= 1:
        yield from ((name, _signed(run, *arguments)) for name, arguments in tasks.items())
        return
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        futures = {pool.submit(_signed, run, *arguments): name for name, arguments in tasks.items()}
        try:
            yield from ((futures[future], future.result()) for future in as_completed(futures))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _signed(run: Task, *arguments: Any) -> dict[str, Any]:
    """The run's result with versions and device; on one core, also where it runs alone."""
    with one_core():
        return {**run(*arguments), "versions": versions(), "device": describe_device(torch.device("cpu"))}


@contextmanager
def one_core() -> Iterator[None]:
    """Sums are then the same on any number of cores."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(cores)


def wanted(name: str, only: Iterable[str] | None) -> bool:
    return not only or any(part in name for part in only)


def configuration(name: str) -> dict[str, str]:
    """Arguments of `create_model` for a scheme or a baseline, by name."""
    return {"baseline": name} if name in BASELINES else {"positions": name}


def open_results(folder: Path, settings: Mapping[str, Any]) -> Results:
    """Those in `folder`; ends the program where they are of other settings."""
    try:
        return Results(folder, settings)
    except UserError as error:
        raise SystemExit(str(error)) from error


def _summary(run: Mapping[str, Any]) -> str:
    return "  ".join(f"{key} {value:.3f}" for key, value in run.items() if isinstance(value, float))
