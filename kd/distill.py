"""Distillation of any student from any teacher, on the one training loop."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from docvit.errors import SettingError
from docvit.hardware import choose_device, has_fast_bf16
from docvit.training.ema import EMATeacher
from docvit.training.loop import CHECKPOINT, Batches, Record, TrainSettings, fit
from kd.lessons import HARD_TARGETS, Frozen, Lesson, Targets
from kd.losses import SoftLoss
from kd.sweep import InputsOf, by_name, evaluating, images_of, join

logger = logging.getLogger(__name__)

SETTINGS = "distillation.json"

FINE_TUNING = "fine-tuning"

AT_CHANCE = "at_chance"

Evaluate = Callable[[nn.Module], Record]


class DistillationError(SettingError):
    """A teacher, a student and data that do not fit together; the message says how they differ."""


@dataclass(frozen=True)
class Distillation:
    """What `distill` has done.

    Attributes:
        student: the network to keep, in eval mode: the moving average if there is one, else the student itself.
        history: one record an epoch, see `docvit.train.fit`.
        fine_tuning: likewise, of the epochs on hard targets alone.
        teacher_figures: what `evaluate` says of the teacher.
        student_figures: what it says of the student that is kept.
        warnings: what went wrong without stopping the training.
    """

    student: nn.Module
    history: list[Record]
    fine_tuning: list[Record]
    teacher_figures: Record
    student_figures: Record
    warnings: tuple[str, ...]


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Batches,
    *,
    alpha: float = Targets.alpha,
    temperature: float = Targets.temperature,
    soft: str | SoftLoss = "soft-targets",
    label_smoothing: float = Targets.label_smoothing,
    ramp_up: float = Targets.ramp_up,
    fine_tune: int = 0,
    ema: EMATeacher | float | None = None,
    settings: TrainSettings | None = None,
    evaluate: Evaluate | None = None,
    inputs_of: InputsOf = images_of,
    output: str | os.PathLike[str] | None = None,
    save: Callable[[nn.Module], None] | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    compile: bool = False,
) -> Distillation:
    """Train `student` in place on labels and on what `teacher` says of the very same inputs.

    For a teacher that is the moving average of the student itself (mean teacher, arXiv 1703.01780), give one
    `EMATeacher(student)` both as `teacher` and as `ema`, and a `ramp_up`.

    Args:
        teacher: inputs to logits (B, C), as the student; it is moved to the device and left in eval mode, its weights
            and statistics stay as they are.
        data: batches with `.labels` and `.to(device)`.
        alpha, temperature, soft, label_smoothing, ramp_up: see `Targets`.
        fine_tune: epochs on hard targets alone afterwards, at a constant tenth of the learning rate; where there is a
            moving average they go on from it and average anew.
        ema: a moving average of the student, or the decay of one; it is what `evaluate` and `save` get.
        settings: of the loop; bfloat16 only where the device is fast at it.
        evaluate: figures of a network, asked after every epoch, and of teacher and student at the end; see `measure`.
        inputs_of: what of a batch the networks are called with.
        output: folder for checkpoints and curves; those of the fine-tuning lie in a folder below it.
        resume: go on from the checkpoint in `output`; the result is the one that an uninterrupted run gives.
        compile: run teacher and student through `torch.compile`.

    Raises:
        DistillationError: teacher and student differ in their classes, labels lie outside of them, `output` holds
            another run, or the run to resume had other settings.
        ValueError: this machine has no such device.
        docvit.train.TrainingError: as `fit`.
    """
    place = choose_device(device)
    settings = settings or TrainSettings()
    settings = replace(settings, bf16=settings.bf16 and has_fast_bf16(place))
    targets = Targets(alpha=alpha, temperature=temperature, soft=soft, label_smoothing=label_smoothing, ramp_up=ramp_up)
    folder = Path(output) if output is not None else None

    # 1. The teacher has learnt; from here on it only predicts.
    guide = Frozen(teacher.to(place), compile=compile)
    student.to(place)
    average = EMATeacher(student, decay=ema) if isinstance(ema, (int, float)) else ema
    if average is not None:
        average.to(place)
    # 2. Inputs and labels: both networks are handed the same view of every batch.
    probe = _first(data).to(place)
    check_classes(student, guide, probe, inputs_of=inputs_of, bf16=settings.bf16)
    if folder is not None:
        _agree(folder, {**asdict(targets), "soft": _name(soft), "fine_tune": fine_tune}, resume=resume)

    def stage(taught_by: Frozen | None, asked: Targets, loop: TrainSettings, *, begun: int = 0) -> list[Record]:
        place_of_stage = folder / FINE_TUNING if folder is not None and begun else folder
        goes_on = resume and (not begun or (place_of_stage is not None and (place_of_stage / CHECKPOINT).is_file()))
        return teach(
            student,
            taught_by,
            data,
            asked,
            loop,
            ema=average,
            evaluate=evaluate,
            inputs_of=inputs_of,
            output=place_of_stage,
            save=save,
            resume=goes_on,
            device=place,
            compile=compile,
            first_epoch=begun,
            description="fine-tuning" if begun else "distilling",
        )

    # 3. Hard targets are the labels, soft targets the teacher's probabilities; 4. one loss weighs both.
    history = stage(guide, targets, settings)
    # 5. On request, the labels have the last word.
    if fine_tune and average is not None:
        average.copy_to(student)  # the steps are counted from 1 again, so the average begins with what it is given
    last_word = replace(settings, epochs=max(1, fine_tune), lr=settings.lr / 10, schedule="constant", warmup=0.0)
    labels_alone = replace(HARD_TARGETS, label_smoothing=label_smoothing)
    fine_tuning = stage(None, labels_alone, last_word, begun=settings.epochs) if fine_tune else []
    # 6. The student beside its teacher.
    kept = (average.module if average is not None else student).eval()
    of_teacher, of_student = (evaluate(network) if evaluate is not None else {} for network in (guide.teacher, kept))
    return Distillation(kept, history, fine_tuning, of_teacher, of_student, chance_warnings(history))


def teach(
    model: nn.Module,
    teacher: Frozen | None,
    data: Batches,
    targets: Targets | Mapping[str, Targets],
    settings: TrainSettings,
    *,
    ema: EMATeacher | None = None,
    evaluate: Evaluate | None = None,
    inputs_of: InputsOf = images_of,
    output: str | os.PathLike[str] | None = None,
    save: Callable[[nn.Module], None] | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    compile: bool = False,
    first_epoch: int = 0,
    description: str = "training",
    every_epoch: bool = True,
) -> list[Record]:
    """`docvit.train.fit` with a teacher or without one: the stage that every training here consists of.

    `model` gives logits, or, as a `Sweep`, logits by name; then `targets` are by the same names and so are the figures
    in the records ("alpha 0.5/hard"). Training that has learnt nothing in its first epoch is warned of, and its first
    record holds "at_chance", the loss. `first_epoch` is where `data` begins to count.

    Raises:
        DistillationError: networks, teacher and labels differ in their classes, or the gradients of a sweep would be
            clipped together.
    """
    by_network = {"": targets} if isinstance(targets, Targets) else dict(targets)
    if len(by_network) > 1 and settings.clip is not None:
        raise DistillationError("clipping the gradients of a sweep together couples its networks: set clip to None")
    epochs = LaterEpochs(data, first_epoch)
    probe = _first(epochs).to(device)
    check_classes(model.to(device), teacher, probe, inputs_of=inputs_of, bf16=settings.bf16, names=tuple(by_network))

    total = settings.epochs * len(epochs)

    def figures(shown: nn.Module) -> Record:
        record = dict(evaluate(shown)) if evaluate is not None else {}
        return record | _at_chance(model, probe, inputs_of, settings.bf16) if epochs.epoch == 0 else record

    return fit(
        model,
        epochs,
        Lesson(by_network, teacher, inputs_of=inputs_of, progress=lambda: epochs.step / total, compile=compile),
        settings,
        output=output,
        ema=ema,
        evaluate=figures,
        save=save,
        resume=resume,
        device=device,
        description=description,
        every_epoch=every_epoch,
    )


def check_classes(
    model: nn.Module,
    teacher: Frozen | None,
    batch: Any,
    *,
    inputs_of: InputsOf = images_of,
    bf16: bool = False,
    names: Iterable[str] = ("",),
) -> None:
    """One look at a batch before hours of training.

    Raises:
        DistillationError: logits that are none, other networks than `names`, another number of classes in the teacher
            than in the student, or labels outside of them.
    """
    outputs = _look(model, batch, inputs_of, bf16)
    if set(outputs) != set(names):
        raise DistillationError(f"there are targets for {sorted(names)}, but networks {sorted(outputs)}")
    taught = _look(teacher, batch, inputs_of, bf16).values() if teacher is not None else ()
    for logits in (*outputs.values(), *taught):
        if logits.ndim != 2:
            raise DistillationError(f"networks must give logits (batch, classes), not {tuple(logits.shape)}")
    for logits in outputs.values():
        classes = logits.shape[1]
        for told in taught:
            if told.shape[1] != classes:
                raise DistillationError(f"the teacher tells {told.shape[1]} classes apart, the student {classes}")
        lowest, highest = int(batch.labels.min()), int(batch.labels.max())
        if lowest < 0 or highest >= classes:
            raise DistillationError(f"labels from {lowest} to {highest} do not fit a student of {classes} classes")


def chance_warnings(history: list[Record]) -> tuple[str, ...]:
    """What `teach` warned of, read from its records."""
    found = [(key, loss) for key, loss in history[0].items() if key.split("/")[-1] == AT_CHANCE] if history else []
    return tuple(_chance_warning(key.rpartition("/")[0], loss) for key, loss in found)


def _chance_warning(name: str, loss: float) -> str:
    return f"{name}{': ' if name else ''}still at chance after the first epoch, with a loss of {loss:.3f}"


def _at_chance(model: nn.Module, probe: Any, inputs_of: InputsOf, bf16: bool) -> Record:
    found = {}
    for name, logits in _look(model, probe, inputs_of, bf16).items():
        loss, chance = float(F.cross_entropy(logits.float(), probe.labels)), math.log(logits.shape[1])
        if not loss < chance - 0.02:  # a network of which anything is learnt is far below
            found[join(name, AT_CHANCE)] = loss
            logger.warning(
                "%s (ln %d = %.3f): its learning rate, optimiser or initialisation does not fit",
                _chance_warning(name, loss),
                logits.shape[1],
                chance,
            )
    return found


@torch.no_grad()
def _look(model: nn.Module, batch: Any, inputs_of: InputsOf, bf16: bool) -> Mapping[str, torch.Tensor]:
    with evaluating(model), torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=bf16):
        return by_name(model(inputs_of(batch)))


class LaterEpochs:
    """Batches that begin to count at a later epoch, and know which epoch and step of the stage are in progress."""

    def __init__(self, batches: Batches, first_epoch: int) -> None:
        self.batches, self.first_epoch, self.epoch = batches, first_epoch, 0
        self.step = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            yield batch
            self.step += 1

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch, self.step = epoch, epoch * len(self) + skip
        self.batches.set_epoch(epoch + self.first_epoch, skip)


def _first(batches: Batches) -> Any:
    batches.set_epoch(0)
    return next(iter(batches))


def _name(soft: str | SoftLoss) -> str:
    return soft if isinstance(soft, str) else getattr(soft, "__name__", type(soft).__name__)


def _agree(folder: Path, asked: dict[str, Any], *, resume: bool) -> None:
    """Writes the settings of a new run; one that is resumed must have had the same."""
    file = folder / SETTINGS
    if resume and file.is_file():
        found = {"ramp_up": 0.0} | json.loads(file.read_text())  # runs from before there was one
        differing = [f"{key} was {found.get(key)!r}" for key in asked if found.get(key) != asked[key]]
        if differing:
            raise DistillationError(f"the run in {folder} had other settings: {', '.join(differing)}")
    elif not resume:
        if file.exists() or (folder / CHECKPOINT).exists():
            raise DistillationError(f"{folder} already holds a run: resume it, or choose another output")
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked, indent=2) + "\n")
