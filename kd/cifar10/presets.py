"""What the benchmarks train: the report as it stands, its networks trained as one would today, and a quick look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from docvit.training.loop import TrainSettings
from kd.cifar10.batches import Augment
from kd.cifar10.networks import Init
from kd.config import HARD_TARGETS, DistillConfig

TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000  # of CIFAR-10

# What the report leaves open, chosen once: Adam at its usual rate, and batches that use up 50,000 images exactly.
PLAIN = TrainSettings(
    lr=1e-3, weight_decay=0.0, optimizer="adam", schedule="constant", warmup=0.0, clip=None, checkpoint_minutes=2.0
)

FAILING = replace(PLAIN, optimizer="momentum", momentum=0.0)  # timm's name for SGD without Nesterov's step

MODERN = TrainSettings(
    lr=1e-3, weight_decay=0.05, optimizer="adamw", schedule="cosine", warmup=0.05, clip=None, checkpoint_minutes=2.0
)


@dataclass(frozen=True)
class Stage:
    """Networks of one kind that train side by side on one seed's data.

    Attributes:
        networks: the networks by name, all with the same initial weights, and what each learns from.
        teacher: the network that the stage called "teacher" of the same seed trained, or the only network's own moving
            average.
    """

    name: str
    net: Literal["student", "teacher"]
    networks: Mapping[str, DistillConfig]
    train: TrainSettings
    teacher: Literal["none", "teacher", "average"] = "none"


@dataclass(frozen=True)
class Preset:
    """A set of stages under common settings.

    Attributes:
        stages: in the order they run.
        teacher_epoch: after how many epochs of its own training the teacher is taken.
        seeds: how many repetitions, unless asked otherwise.
        decay: of every moving average (`kd.EMATeacher`, with its warm-up).
        teacher_width, student_width: factors on the channels of the networks.
        train_images, test_images: how many of them, evenly over the classes; None for all.
        measured_images: training images that the training loss and accuracy are measured on after every epoch.
        conclusive: whether verdicts can be drawn at all.
    """

    name: str
    stages: tuple[Stage, ...]
    teacher_epoch: int
    seeds: int = 5
    batch_size: int = 500
    decay: float = 0.99
    teacher_width: float = 1.0
    student_width: float = 1.0
    init: Init = "default"
    augment: Augment | None = None
    train_images: int | None = None
    test_images: int | None = None
    measured_images: int = 5000
    conclusive: bool = field(default=True, kw_only=True)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def limited(self, images: int) -> Preset:
        """Trained on so many images, in batches so much smaller that an epoch has about its usual number of steps.

        Adam moves as far in a step whatever the batch: with fewer steps networks would be judged before they learn.
        """
        share = images / (self.train_images or TRAIN_IMAGES)
        return replace(
            self,
            train_images=images,
            test_images=min(images, self.test_images or TEST_IMAGES),
            batch_size=max(1, round(share * self.batch_size)),
            measured_images=max(1, round(share * self.measured_images)),
        )

    def shortened(self, epochs: int) -> Preset:
        """With at most so many epochs per stage; where that cuts any, nothing can be concluded any more."""
        stages = tuple(replace(s, train=replace(s.train, epochs=min(epochs, s.train.epochs))) for s in self.stages)
        conclusive = self.conclusive and stages == self.stages
        return replace(self, stages=stages, teacher_epoch=min(epochs, self.teacher_epoch), conclusive=conclusive)


def _report_stages(teacher_epochs: int, epochs: int) -> tuple[Stage, ...]:
    alphas = {f"alpha {alpha}": DistillConfig(alpha=alpha) for alpha in (0.5, 0.6, 0.8)}
    alone = {"alone": HARD_TARGETS}
    shorter = replace(PLAIN, epochs=epochs)
    return (
        # at a constant rate the run of 15 epochs passes through those of 6 and 10
        Stage("teacher", "teacher", alone, replace(PLAIN, epochs=teacher_epochs)),
        Stage("baseline", "student", alone, shorter),
        Stage("failure", "student", alone, replace(FAILING, epochs=epochs)),
        Stage("students", "student", alphas, shorter, teacher="teacher"),
        # at full weight from the first step, one of two seeds never left chance (5,000 images, half the width)
        Stage(
            "mean-teacher", "teacher", {"distilled": DistillConfig(alpha=0.5, ramp_up=0.25)}, shorter, teacher="average"
        ),
    )


def _modern_stages() -> tuple[Stage, ...]:
    # the same view for both networks, soft targets alone, and patience: arXiv 2106.05237; labels are smoothed for
    # students that learn alone, not for the teacher, whose soft targets that would spoil (arXiv 1906.02629)
    pair = {"alone": replace(HARD_TARGETS, label_smoothing=0.1), "distilled": DistillConfig(alpha=1.0)}
    return (
        Stage("teacher", "teacher", {"alone": HARD_TARGETS}, replace(MODERN, epochs=60)),
        Stage("short", "student", pair, replace(MODERN, epochs=30), teacher="teacher"),
        Stage("patient", "student", pair, replace(MODERN, epochs=150), teacher="teacher"),
    )


PRESETS: Mapping[str, Preset] = {
    "report": Preset("report", _report_stages(15, 10), teacher_epoch=10),
    "modern": Preset(
        "modern", _modern_stages(), teacher_epoch=60, seeds=3, init="he", augment=Augment(crop=4, cutout=8)
    ),
    "smoke": Preset(
        "smoke",
        _report_stages(1, 1),
        teacher_epoch=1,
        seeds=1,
        batch_size=100,
        teacher_width=0.25,
        train_images=2000,
        test_images=500,
        measured_images=500,
        conclusive=False,
    ),
}
