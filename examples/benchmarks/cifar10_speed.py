"""How fast the CIFAR-10 networks train here, beside a plain loop, measured in one run.

    python examples/benchmarks/cifar10_speed.py --data DIR --output speed.json --plain

Ours: uint8 images on the device, augmented there, channels_last, bfloat16 over float32 weights, compiled, one shape.
Plain: DataLoader with workers, float32 as PyTorch comes (TF32 convolutions), eager. The same networks, batches,
optimiser and augmentation. A time is the median over `--epochs` epochs (plain: at most two), after one to warm up.
The share of the peak counts three times the forward pass's multiply-accumulates, against a bfloat16 matrix product
measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from docvit.hardware import default_device
from docvit.training.loop import TrainSettings
from kd import StudentCNN, Sweep, TeacherCNN
from kd.cifar10.batches import MEAN, STD, Augment, ImageLoader
from kd.cifar10.files import CIFAR10, load
from kd.config import HARD_TARGETS, DistillConfig
from kd.distill import train_networks
from kd.teacher import Teacher


def main() -> None:
    parser = argparse.ArgumentParser(description="Epoch times of the CIFAR-10 networks.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="JSON")
    parser.add_argument("--device", default=default_device())
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--images", type=int, help="number of training images (default: all)")
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--width", type=float, default=1.0, help="channels of the teacher, as a share")
    parser.add_argument("--plain", action="store_true", help="measure the plain loop too")
    parser.add_argument("--workers", type=int, default=max(2, min(8, (os.cpu_count() or 2) - 2)))
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    data = load(options.data).limit(train=options.images)
    found = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "torch": torch.__version__,
        "images": len(data.train_labels),
        "batch_size": options.batch_size,
        "teacher_width": options.width,
        "workers": options.workers,
        "bf16_peak_tflops": bf16_peak(device) / 1e12,
    }
    report("bf16 peak", f"{found['bf16_peak_tflops']:.1f} TFLOP/s on {found['device']}")
    networks: dict[str, Callable[[], nn.Module]] = {
        "teacher": lambda: TeacherCNN(width=options.width),
        "student": StudentCNN,
    }
    for name, build in networks.items():
        found[name] = times = {"ours": ours({name: build()}, None, data, options, device)}
        flops = 3 * count_flops(build()) * (found["images"] // options.batch_size) * options.batch_size
        times["share_of_peak"] = flops / times["ours"] / 1e12 / found["bf16_peak_tflops"]
        if options.plain:
            times["plain"] = plain(build(), data, options, device)
            times["times"] = times["plain"] / times["ours"]
        report(name, ", ".join(f"{key} {value:.3g}" for key, value in times.items()))
    students = {f"alpha {alpha}": StudentCNN() for alpha in (0.5, 0.6, 0.8)}
    for count in (1, 3):
        some = dict(list(students.items())[:count])
        found[f"students_{count}"] = seconds = ours(some, TeacherCNN(width=options.width), data, options, device)
        report(f"{count} students side by side", f"{seconds:.3g} s per epoch, {seconds / count:.3g} s per student")
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


def count_flops(model: nn.Module) -> int:
    """FLOPs of one forward pass of one image, counted on shapes alone."""
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.empty(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops()


def report(name: str, text: str) -> None:
    print(f"{name:>24}: {text}", flush=True)


def bf16_peak(device: torch.device, side: int | None = None) -> float:
    """FLOP/s of a square matrix product, the best of several tries."""
    side = side or (8192 if device.type == "cuda" else 1024)
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        synchronise(device)
        begun, times = time.perf_counter(), 20 if device.type == "cuda" else 3
        for _ in range(times):
            one @ other
        synchronise(device)
        best = max(best, 2 * side**3 * times / (time.perf_counter() - begun))
    return best


def ours(
    networks: dict[str, nn.Module],
    teacher: nn.Module | None,
    data: CIFAR10,
    options: argparse.Namespace,
    device: torch.device,
) -> float:
    """Seconds per epoch of distillation, all networks side by side."""
    batches = ImageLoader(
        data.train_images,
        data.train_labels,
        batch_size=options.batch_size,
        device=device,
        augment=Augment(),
        shuffle=True,
        drop_last=True,
    )
    sweep = Sweep(networks).to(device).to(memory_format=torch.channels_last)
    compiled = device.type == "cuda" and not options.no_compile
    frozen = None
    if teacher is not None:
        frozen = Teacher(teacher.to(device).to(memory_format=torch.channels_last), compile=compiled)
    settings = TrainSettings(
        epochs=1 + options.epochs,
        lr=1e-3,
        weight_decay=0.0,
        optimizer="adam",
        schedule="constant",
        warmup=0.0,
        clip=None,
    )
    configs = {name: DistillConfig() if teacher is not None else HARD_TARGETS for name in networks}
    history = train_networks(sweep, frozen, batches, configs, settings, device=device, compile=compiled)
    return median(record["seconds"] for record in history[1:])


class Images(Dataset[tuple[Tensor, int]]):
    """The plain data set: one image per call, normalised and augmented by itself."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels.tolist()
        self.mean, self.std = (torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = F.pad(((self.images[index] - self.mean) / self.std)[None], (4, 4, 4, 4), mode="reflect")[0]
        down, right, mirrored = (int(torch.randint(end, ())) for end in (9, 9, 2))
        image = image[:, down : down + 32, right : right + 32]
        return (image.flip(-1) if mirrored else image), self.labels[index]


def plain(network: nn.Module, data: CIFAR10, options: argparse.Namespace, device: torch.device) -> float:
    """Seconds per epoch of the plain loop."""
    loader = DataLoader(
        Images(data.train_images, data.train_labels),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )
    network.to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    seconds = []
    for _ in range(1 + min(2, options.epochs)):
        begun = time.perf_counter()
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronise(device)
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
