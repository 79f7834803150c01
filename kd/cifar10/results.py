"""What has been measured so far: one file that is the memory of a benchmark and its result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from docvit.errors import SettingError
from docvit.files import replaced
from docvit.hardware import has_fast_bf16
from docvit.training.run_folder import differences
from kd.cifar10.files import CIFAR10
from kd.cifar10.presets import Preset

RESULTS = "results.json"


class BenchmarkError(SettingError):
    """A benchmark that cannot run as asked; the message says why."""


class Results:
    """The settings of a benchmark and its finished runs by name, kept in `folder/results.json`.

    What else somebody wrote into that file, such as a note, stays in it.

    Raises:
        BenchmarkError: the folder holds results of other settings, or something else than results.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = Path(folder), json.loads(json.dumps(settings))
        self.file = self.folder / RESULTS
        self.runs: dict[str, dict[str, Any]] = {}
        self.more: dict[str, Any] = {}
        if self.folder.exists() and not self.folder.is_dir():
            raise BenchmarkError(f"{self.folder} is not a folder: choose another output")
        if self.file.exists():
            self.runs = self._read()
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise BenchmarkError(f"{self.folder} is not empty and holds no {RESULTS}: choose another output")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()

    def add(self, name: str, run: Mapping[str, Any]) -> None:
        self.runs[name] = json.loads(json.dumps(run))
        self._write()

    def of_stage(self, stage: str) -> dict[int, dict[str, Any]]:
        """The finished runs of a stage by seed."""
        return {run["seed"]: run for run in self.runs.values() if run["stage"] == stage}

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            found = json.loads(self.file.read_text())
            settings, runs = found.pop("settings"), found.pop("runs")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BenchmarkError(f"{self.file} holds no results of this benchmark: {error!r}") from error
        differing = differences(settings, self.settings)
        if differing:
            raise BenchmarkError(f"{self.folder} holds results of other settings: {'; '.join(differing)}")
        self.more = found
        return dict(runs)

    def _write(self) -> None:
        with replaced(self.file) as partial:
            held = {**self.more, "settings": self.settings, "runs": self.runs}
            partial.write_text(json.dumps(held, indent=1) + "\n")


def settings_of(preset: Preset, data: CIFAR10, device: torch.device) -> dict[str, Any]:
    """All that results depend on, but for the seed and the last bits of arithmetic."""
    digest = hashlib.sha256()
    for tensor in (data.train_images, data.train_labels, data.test_images, data.test_labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return {
        "preset": asdict(preset),
        "precision": "bfloat16 over float32 weights" if has_fast_bf16(device) else "float32",
        "data": {"train": len(data.train_labels), "test": len(data.test_labels), "sha256": digest.hexdigest()},
    }


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("docvit", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout
            found[package] = "unknown"
    return found
