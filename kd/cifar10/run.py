"""The CIFAR-10 benchmarks: every run of a preset, once, each continued where it stopped."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from docvit.files import write_tensors
from docvit.hardware import choose_device
from docvit.training.ema import EMATeacher
from docvit.training.loop import CHECKPOINT, Record, uses_bf16
from docvit.training.run_folder import agree_on_run
from kd.cifar10.batches import ImageLoader
from kd.cifar10.files import CIFAR10
from kd.cifar10.networks import StudentCNN, TeacherCNN
from kd.cifar10.presets import Preset, Stage
from kd.cifar10.report import write_report
from kd.cifar10.results import BenchmarkError, Results, describe_device, settings_of, versions
from kd.cifar10.tables import TABLES, Table
from kd.cifar10.teacher_logits import teacher_logits
from kd.distill import chance_warnings, train_networks
from kd.sweep import Sweep, measure
from kd.teacher import Teacher, TeacherCache, fingerprint

logger = logging.getLogger(__name__)

WEIGHTS = ("weights", "average")


def bench_cifar10(
    data: CIFAR10,
    output: str | os.PathLike[str],
    preset: Preset,
    *,
    seeds: int | None = None,
    teachers: int | None = None,
    device: torch.device | str | None = None,
    only: Sequence[str] = (),
    compile: bool | None = None,
) -> Results:
    """Run what the tables of `preset` need and is not yet in `output`; after every run the report is written anew.

    `output` gets results.json, report.md, PNG curves, and under runs/ what an interrupted run continues from and the
    teachers' weights. More seeds or tables may be asked for later.

    Args:
        seeds: how many repetitions; the preset's own number by default.
        teachers: train the large networks of the first so many seeds only; the students of further seeds have those
            of the first ones, in turn. All by default.
        only: names of tables; all by default.
        compile: run the networks through `torch.compile`; by default on CUDA.

    Raises:
        BenchmarkError: `output` holds something else, no table is called so, or the data have too few images.
        TrainingError: a student that was interrupted had another teacher.
        ValueError: this machine has no such device.
    """
    chosen = choose_device(device)
    data = _limit(data, preset)
    tables = _choose(TABLES[preset.name], only)
    results = Results(output, settings_of(preset, data, chosen))
    compiled = chosen.type == "cuda" if compile is None else compile
    count = seeds or preset.seeds
    teachers = min(teachers or count, count)
    bench = _Bench(preset, _to_device(data, chosen), results, teachers, chosen, compiled)
    stages = _needed(preset, tables)
    runs = [(s, seed) for seed in range(count) for s in stages if s.net == "student" or seed < teachers]
    due = [(stage, seed) for stage, seed in runs if _name(stage, seed) not in results.runs]
    write_report(results, preset, tables)
    for stage, seed in tqdm(due, initial=len(runs) - len(due), total=len(runs), desc="runs", disable=None):
        bench.run(stage, seed)
        write_report(results, preset, tables)
    return results


@dataclass(frozen=True)
class _Bench:
    preset: Preset
    data: CIFAR10
    results: Results
    teachers: int
    device: torch.device
    compile: bool

    def run(self, stage: Stage, seed: int) -> None:
        """Train one stage and record its results."""
        folder = self.results.folder / "runs" / _name(stage, seed)
        resume = (folder / CHECKPOINT).is_file()
        agree_on_run(folder / "run.json", {"teacher_seed": self.teacher_seed(stage, seed)}, resume=resume)
        settings = replace(stage.train, seed=seed)
        sweep = self.build(stage, seed)
        average = EMATeacher(sweep, decay=self.preset.decay)
        batches = self.batches(self.data.train_images, self.data.train_labels, seed=seed, training=True)
        measured = self.evaluation(sweep, average)

        def evaluate(_: nn.Module) -> Record:
            if stage.name == "teacher" and batches.epoch + 1 == self.preset.teacher_epoch:
                write_tensors(folder / "teacher.safetensors", sweep[next(iter(stage.networks))].state_dict())
            return measured()

        history = train_networks(
            sweep,
            self.teacher(stage, seed, average),
            batches,
            stage.networks,
            settings,
            ema=average,
            evaluate=evaluate,
            output=folder,
            resume=resume,
            device=self.device,
            compile=self.compile,
            description=_name(stage, seed),
            every_epoch=False,
        )
        self.results.add(_name(stage, seed), self.record(stage, seed, sweep, history))
        (folder / CHECKPOINT).unlink()

    def build(self, stage: Stage, seed: int) -> Sweep:
        """The stage's networks with one and the same start, drawn on the CPU: alike on every device."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.network(stage.net)
        sweep = Sweep({name: copy.deepcopy(network) for name in stage.networks})
        return sweep.to(self.device).to(memory_format=torch.channels_last)

    def network(self, kind: str) -> nn.Module:
        classes, init = len(self.data.class_names), self.preset.init
        if kind == "student":
            return StudentCNN(num_classes=classes, init=init, width=self.preset.student_width)
        return TeacherCNN(num_classes=classes, init=init, width=self.preset.teacher_width)

    def teacher(self, stage: Stage, seed: int, average: EMATeacher) -> Teacher | None:
        if stage.teacher == "average":
            (name,) = stage.networks
            return Teacher(cast(Sweep, average.module)[name], compile=self.compile)
        owner = self.teacher_seed(stage, seed)
        if owner is None:
            return None
        name = _name(self.preset.stage("teacher"), owner)
        file = self.results.folder / "runs" / name / "teacher.safetensors"
        if not file.is_file():
            raise BenchmarkError(f"{file} is gone, and the run that wrote it is not repeated: choose another output")
        network = self.network("teacher")
        network.load_state_dict(load_file(file))
        teacher = Teacher(network.to(self.device).to(memory_format=torch.channels_last), compile=self.compile)
        if self.preset.augment is None:  # it sees the same images in every epoch
            bf16 = uses_bf16(stage.train, self.device)
            images = self.batches(self.data.train_images, self.data.train_labels, training=True)
            facts = {"teacher": fingerprint(network), "data": self.results.settings["data"]["sha256"], "bf16": bf16}
            cache = TeacherCache(file.parent / "logits", {**facts, "view": None, "batch_size": images.batch_size})
            teacher.known = teacher_logits(teacher, images, cache, bf16=bf16)
        return teacher

    def teacher_seed(self, stage: Stage, seed: int) -> int | None:
        """The seed of the stage's teacher, if it has that of the stage called "teacher"."""
        return seed % self.teachers if stage.teacher == "teacher" else None

    def batches(self, images: Tensor, labels: Tensor, *, seed: int = 0, training: bool = False) -> ImageLoader:
        return ImageLoader(
            images,
            labels,
            batch_size=min(self.preset.batch_size if training else 2000, len(labels)),
            device=self.device,
            augment=self.preset.augment if training else None,
            seed=seed,
            shuffle=training,
            drop_last=training,
        )

    def evaluation(self, sweep: Sweep, average: EMATeacher) -> Callable[[], Record]:
        """A function that measures the networks and their averages on test and training images."""
        seen = self.data.limit(train=min(self.preset.measured_images, len(self.data.train_labels)))
        splits = {
            "test": self.batches(self.data.test_images, self.data.test_labels),
            "train": self.batches(seen.train_images, seen.train_labels),
        }
        return lambda: {
            f"{name}/{kind}/{split}_{metric}": value
            for kind, networks in zip(WEIGHTS, (sweep, average.module), strict=True)
            for split, batches in splits.items()
            for key, value in measure(networks, batches, device=self.device).items()
            for name, metric in [key.rsplit("/", 1)]
        }

    def record(self, stage: Stage, seed: int, sweep: Sweep, history: list[Record]) -> dict[str, Any]:
        """A run as it stands in results.json."""
        shared = ("epoch", "lr", "seconds", "loss")
        return {
            "stage": stage.name,
            "seed": seed,
            "device": describe_device(self.device),
            "versions": versions(),
            "compiled": self.compile,
            "train": asdict(replace(stage.train, seed=seed)),
            "teacher": stage.teacher,
            "teacher_seed": self.teacher_seed(stage, seed),
            "epochs": [{key: record[key] for key in shared} for record in history],
            "networks": {
                name: {
                    "config": config.as_dict(),
                    "parameters": sum(weight.numel() for weight in sweep[name].parameters()),
                    "losses": [_losses(record, name) for record in history],
                    **{kind: _curves(history, f"{name}/{kind}/") for kind in WEIGHTS},
                }
                for name, config in stage.networks.items()
            },
            "warnings": list(chance_warnings(history)),
        }


def _losses(record: Record, name: str) -> Record:
    return {part: record.get(f"{name}/{part}_loss", 0.0) for part in ("hard", "soft")}  # 0 without a teacher


def _curves(history: list[Record], prefix: str) -> list[Record]:
    return [{k.removeprefix(prefix): v for k, v in record.items() if k.startswith(prefix)} for record in history]


def _name(stage: Stage, seed: int) -> str:
    return f"{stage.name}-seed{seed}"


def _choose(tables: Sequence[Table], only: Sequence[str]) -> list[Table]:
    unknown = set(only) - {table.name for table in tables}
    if unknown:
        names = ", ".join(table.name for table in tables)
        raise BenchmarkError(f"no table is called {', '.join(sorted(unknown))}; there are {names}")
    return [table for table in tables if not only or table.name in only]


def _needed(preset: Preset, tables: Sequence[Table]) -> list[Stage]:
    """The stages behind the tables, and the teacher's where one of them has it as its teacher."""
    names = {stage for table in tables for stage in table.stages}
    if any(preset.stage(name).teacher == "teacher" for name in names):
        names.add("teacher")
    return [stage for stage in preset.stages if stage.name in names]


def _limit(data: CIFAR10, preset: Preset) -> CIFAR10:
    def available(what: str, wanted: int | None, labels: Tensor) -> int:
        if wanted is not None and wanted > len(labels):
            logger.warning("%d %s images were asked for, there are %d", wanted, what, len(labels))
        return min(wanted or len(labels), len(labels))

    return data.limit(
        train=available("training", preset.train_images, data.train_labels),
        test=available("test", preset.test_images, data.test_labels),
    )


def _to_device(data: CIFAR10, device: torch.device) -> CIFAR10:
    # in channels_last all the batches of all the runs share this memory
    images, tests = (
        images.to(device, memory_format=torch.channels_last) for images in (data.train_images, data.test_images)
    )
    return CIFAR10(images, data.train_labels.to(device), tests, data.test_labels.to(device), data.class_names)
