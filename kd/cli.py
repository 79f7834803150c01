"""The commands: `kd bench`."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from docvit.console import run
from kd.benchmarks import bench_cifar10
from kd.cifar10_files import download as download_cifar10
from kd.cifar10_files import load
from kd.presets import PRESETS, Preset

app = typer.Typer(
    help="Distil knowledge from large networks into small ones, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench = typer.Typer(help="Benchmarks.", no_args_is_help=True)
app.add_typer(bench, name="bench")


class PresetName(str, Enum):
    report, modern, smoke = "report", "modern", "smoke"


@bench.callback()
def _benchmarks() -> None:
    """Benchmarks."""


@bench.command()
def cifar10(
    data: Annotated[Path, typer.Option(metavar="DIR", help="CIFAR-10: official files, or a folder a class.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where results.json, report.md and the curves go.")],
    preset: Annotated[
        PresetName,
        typer.Option(help="The report as it stands, its networks trained as one would today, or a quick look."),
    ] = PresetName.report,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions [default: report 5, modern 3, smoke 1]")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Just this table; may be given several times.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=10, help="Train on this many images only, and say so.")] = None,
    width: Annotated[float | None, typer.Option(min=0.01, help="Factor on the teacher's channels, and say so.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 into --data first.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... [default: cuda if there is one]")] = None,
) -> None:
    """Repeat every table and curve of the CIFAR-10 report; interrupted, the same command goes on."""
    if download:
        download_cifar10(data)
    chosen = _adjust(PRESETS[preset.value], images, width)
    bench_cifar10(load(data), output, chosen, seeds=seeds, device=device, only=only or ())
    print(output / "report.md")


def _adjust(preset: Preset, images: int | None, width: float | None) -> Preset:
    preset = preset if images is None else replace(preset, train_images=images)
    return preset if width is None else replace(preset, teacher_width=width)


def main() -> None:
    """Entry point: whatever is wrong with the user's files ends in one line, never in a traceback."""
    run(app)
