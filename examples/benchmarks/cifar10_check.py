"""Does a device compute what the CPU does? Toy-sized training there and here, in float32, and compiled beside eager.

    python examples/benchmarks/cifar10_check.py [--device cuda] [--output check.json]

Made-up images whose class shows in their colour. Two students are trained for a few steps, one of them with a teacher
of an eighth of the width. Ends with status 1 if a difference is larger than rounding explains.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from docvit.hardware import default_device, has_fast_bf16
from docvit.training.loop import TrainSettings
from kd import EMATeacher, StudentCNN, Sweep, TeacherCNN
from kd.cifar10.batches import Augment, ImageLoader
from kd.config import HARD_TARGETS, DistillConfig
from kd.distill import train_networks
from kd.teacher import Teacher

STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a device with the CPU.")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--output", type=Path, help="JSON")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # the comparison is of float32
    same = ImageLoader(*images(), batch_size=40, augment=Augment(cutout=8), shuffle=True, seed=3)
    there = ImageLoader(
        *images(), batch_size=40, augment=Augment(cutout=8), shuffle=True, seed=3, device=options.device
    )
    reference = losses("cpu")
    differences = {
        "views": float((same[0].images - there[0].images.cpu()).abs().max()),
        "float32, eager": apart(losses(options.device), reference),
        "float32, compiled": apart(losses(options.device, compile=True), reference),
    }
    limits = {"views": 1e-5, "float32, eager": 1e-3, "float32, compiled": 1e-3}
    if has_fast_bf16(options.device):
        differences["bfloat16, compiled"] = apart(losses(options.device, compile=True, bf16=True), reference)
        limits["bfloat16, compiled"] = 5e-2
    for name, value in differences.items():
        print(f"{name:>20}: {value:.2e} (limit {limits[name]:.0e})")
    if options.output is not None:
        options.output.write_text(json.dumps({"differences": differences, "limits": limits}, indent=2) + "\n")
    sys.exit(any(not differences[name] <= limit for name, limit in limits.items()))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40 * STEPS) % 10
    colours = torch.randint(256, (10, 3, 1, 1), generator=generator)
    noise = torch.randint(-20, 20, (len(labels), 3, 32, 32), generator=generator)
    return (colours[labels] + noise).clamp(0, 255).to(torch.uint8), labels


def losses(device: str, *, compile: bool = False, bf16: bool = False) -> dict[str, float]:
    torch.manual_seed(0)
    teacher = TeacherCNN(width=0.125, init="he").to(device).to(memory_format=torch.channels_last)
    networks = {name: StudentCNN(init="he") for name in ("alone", "alpha 0.8")}
    sweep = Sweep(networks).to(device).to(memory_format=torch.channels_last)
    settings = TrainSettings(
        epochs=1, lr=1e-4, weight_decay=0.0, optimizer="momentum", schedule="constant", warmup=0.0, clip=None, bf16=bf16
    )
    history = train_networks(
        sweep,
        Teacher(teacher, compile=compile),
        ImageLoader(*images(), batch_size=40, augment=Augment(), shuffle=True, drop_last=True, device=device),
        {"alone": HARD_TARGETS, "alpha 0.8": DistillConfig(alpha=0.8)},
        settings,
        ema=EMATeacher(sweep),
        device=device,
        compile=compile,
    )
    return {
        key: value for key, value in history[0].items() if key == "loss" or key.endswith(("/hard_loss", "/soft_loss"))
    }


def apart(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest relative difference; terms that are zero in both are alike."""
    return max(abs(one[key] - other[key]) / max(abs(other[key]), 1e-2) for key in other)


if __name__ == "__main__":
    main()
