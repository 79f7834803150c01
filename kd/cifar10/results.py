"""What has been measured so far: one file that is the memory of a benchmark and its result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch

import docvit
from docvit.errors import SettingError
from docvit.hardware import has_fast_bf16
from docvit.training.run_folder import open_folder, write_manifest
from kd.cifar10.files import CIFAR10
from kd.cifar10.presets import Preset

RESULTS = "results.json"


class BenchmarkError(SettingError):
    """A benchmark that cannot run as asked; the message says why."""


class Results:
    """The settings of a benchmark and its finished runs by name, kept in `folder/results.json`.

    What else somebody wrote into that file, such as a note, stays in it.

    Raises:
        TrainingError: the folder holds results of other settings, or something else than results.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.file = self.folder / RESULTS
        self._held = {"runs": {}, **open_folder(self.file, {"settings": settings})}
        self.settings: dict[str, Any] = self._held["settings"]
        self.runs: dict[str, dict[str, Any]] = self._held["runs"]

    def add(self, name: str, run: Mapping[str, Any]) -> None:
        self.runs[name] = json.loads(json.dumps(run))
        write_manifest(self.file, self._held)

    def of_stage(self, stage: str) -> dict[int, dict[str, Any]]:
        """The finished runs of a stage by seed."""
        return {run["seed"]: run for run in self.runs.values() if run["stage"] == stage}


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
    packages = {"torch": torch, "docvit": docvit, "timm": timm}
    return {"python": platform.python_version(), **{name: str(p.__version__) for name, p in packages.items()}}
