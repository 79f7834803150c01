"""What a teacher adds to a student's epoch: computed at every step, or read from the cache, against no teacher at all.

    python examples/benchmarks/distil_cache.py DATA --output results/distil_cache.json

DATA is a folder with a sub folder per class. A first run computes the teacher's outputs and fills the cache. Then the
student trains without a teacher and with the cached one, in turns; a ratio is the median over the turns of the seconds
of two runs in a row. Rendering, evaluation and writing do not count. The teacher's weights are random: they cost what
trained ones cost.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from docvit.data.labels import LabelledDocuments, read_labelled
from docvit.hardware import choose_device
from docvit.training.loop import Record, TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.supervised import train_documents
from kd import distill_documents


def seconds(run: Callable[[Path], list[Record]]) -> float:
    """Of all epochs of a run except the first, which warms up."""
    with tempfile.TemporaryDirectory() as folder:
        history = run(Path(folder) / "run")
    return sum(record["seconds"] for record in history[1:])


def measure(
    data: LabelledDocuments, student: Recipe, teacher: Recipe, turns: int, device: torch.device
) -> dict[str, float | list[float]]:
    """Ratios to the seconds of the student alone."""
    teacher_model = build_model(teacher, data.classes)
    where: dict[str, Any] = {"device": device, "workers": 0}

    def alone(folder: Path) -> list[Record]:
        return train_documents(data, folder, student, **where)[1]

    def distilled(folder: Path) -> list[Record]:
        return distill_documents(student, teacher_model, data, folder, teacher_cache=cache, **where).history

    with tempfile.TemporaryDirectory() as parent:
        cache = Path(parent) / "outputs"
        filling, without = seconds(distilled), seconds(alone)
        ratios = [seconds(distilled) / seconds(alone) for _ in tqdm(range(turns), disable=None)]
        size = sum(file.stat().st_size for file in cache.iterdir())
    return {
        "live_and_written": round(filling / without, 3),
        "cached": round(float(np.median(ratios)), 3),
        "cached_by_turn": [round(ratio, 3) for ratio in ratios],
        "student_epoch_s": round(without / (student.train.epochs - 1), 2),
        "cache_MB_per_epoch": round(size / 1e6 / student.train.epochs, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--student", default=Recipe.model)
    parser.add_argument("--teacher", default="docvit_small_patch16")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--budget", type=int, default=Recipe.budget, help="approximate number of tokens per batch")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device, data = choose_device(arguments.device), read_labelled(arguments.data)
    loop = TrainSettings(epochs=arguments.epochs)
    student = Recipe(model=arguments.student, budget=arguments.budget, train=loop)
    teacher = Recipe(model=arguments.teacher, train=loop)
    result = {
        "student": arguments.student,
        "teacher": arguments.teacher,
        "documents": len(data),
        **measure(data, student, teacher, arguments.turns, device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": version("torch"),
    }
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
