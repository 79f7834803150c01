"""Distillation of any student from any teacher: the procedure's six steps, on the one training loop."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from docvit.hardware import choose_device
from docvit.training.ema import EMATeacher
from docvit.training.loop import CHECKPOINT, Batches, Record, TrainSettings, fit, uses_bf16
from docvit.training.run_folder import agree_on_run
from kd.batches import LaterEpochs, as_batches
from kd.config import HARD_TARGETS, DistillationError, DistillConfig
from kd.objective import DistillationLoss
from kd.sweep import Sweep, logits_of, named_records
from kd.teacher import Outputs, Teacher, image_outputs

logger = logging.getLogger(__name__)

SETTINGS = "distillation.json"

FINE_TUNING = "fine-tuning"

AT_CHANCE = "at_chance"

RAMP_UP = 0.25  # of a teacher that is the student's own moving average, which at first knows nothing

Evaluate = Callable[[nn.Module], Record]


@dataclass(frozen=True)
class Distillation:
    """What `distill` has done.

    Attributes:
        student: the network to keep, in eval mode: the moving average if there is one, else the student itself.
        history: one record per epoch, see `docvit.training.loop.fit`.
        fine_tuning: likewise, of the epochs on labels alone.
        comparison: student beside teacher, as `compare` gives it; by default what `evaluate` says of "teacher" and
            "student".
        warnings: what went wrong without stopping the training.
    """

    student: nn.Module
    history: list[Record]
    fine_tuning: list[Record]
    comparison: Any
    warnings: tuple[str, ...]


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Batches | DataLoader[Any],
    config: DistillConfig = DistillConfig(),
    *,
    outputs: Outputs = image_outputs,
    labelled: Batches | None = None,
    ema: EMATeacher | float | None = None,
    settings: TrainSettings | None = None,
    evaluate: Evaluate | None = None,
    compare: Callable[[nn.Module], Any] | None = None,
    finish: Callable[[nn.Module], nn.Module] = lambda network: network,
    output: str | os.PathLike[str] | None = None,
    facts: Mapping[str, Any] | None = None,
    save: Callable[[nn.Module], None] | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    compile: bool = False,
    probe: bool = True,
    **fields: Any,
) -> Distillation:
    """Train `student` in place on labels and on the outputs of `teacher` for the very same inputs.

    For a teacher that is the moving average of the student itself (mean teacher, arXiv 1703.01780), give one
    `EMATeacher(student)` both as `teacher` and as `ema`.

    Args:
        teacher: inputs to logits (B, C), as the student, or a `kd.teacher.Teacher`. It is moved to the device and left
            in eval mode, its weights and statistics stay as they are.
        data: batches with `.labels` and `.to(device)`, or a DataLoader of (inputs, labels).
        config: weights of the loss; `fields` change single ones: `distill(student, teacher, data, alpha=0.8)`.
        outputs: what the loss reads from a network, see `kd.teacher.Outputs`.
        labelled: batches for the fine-tuning; by default `data`.
        ema: a moving average of the student, or the decay of one; it is what `evaluate`, `save` and `compare` get.
        settings: of the loop.
        evaluate: numbers of a network, asked after every epoch and at the end; see `measure`.
        compare: the kept student -> what to hand back as `comparison`.
        finish: a trained network -> what is kept of it and fine-tuned.
        output: folder for checkpoints and curves; those of the fine-tuning lie in a folder below it.
        facts: what else the run depends on, for JSON: a run is resumed only where this is the same.
        resume: go on from the checkpoint in `output`; the result is the one that an uninterrupted run gives.
        compile: run teacher and student through `torch.compile`.
        probe: first look at one batch: whether classes and labels fit, and after an epoch whether anything is learnt.

    Raises:
        DistillationError: teacher and student differ in their classes, or labels lie outside of them.
        ValueError: this machine has no such device, or a field is out of its range.
        TrainingError: as `fit`; or `output` holds another run, or the run to resume had other settings.
    """
    device = choose_device(device)
    settings = settings or TrainSettings()
    config = replace(config, **fields)
    folder = Path(output) if output is not None else None

    # 1. The teacher is frozen: from here on it only predicts.
    student.to(device)
    average = EMATeacher(student, decay=ema) if isinstance(ema, (int, float)) else ema
    if average is not None:
        average.to(device)
    frozen = teacher if isinstance(teacher, Teacher) else Teacher(teacher, outputs, compile=compile)
    frozen.to(device)
    if config.ramp_up is None:
        own = average is not None and average.module in list(frozen.networks)
        config = replace(config, ramp_up=RAMP_UP if own else 0.0)
    # 2. Inputs and labels: both networks are given the same view of every batch.
    batches = as_batches(data, settings.seed)
    if probe:
        check_classes(student, frozen, _first(batches).to(device), outputs, bf16=uses_bf16(settings, device))
    if folder is not None:
        agree_on_run(folder / SETTINGS, {"config": config.as_dict(), **(facts or {})}, resume=resume)
    # 3. Hard targets are the labels, soft targets the teacher's probabilities; 4. one loss weighs all of them.
    train = partial(
        train_networks, outputs=outputs, evaluate=evaluate, save=save, device=device, compile=compile, probe=probe
    )
    loop: dict[str, Any] = {"ema": average, "output": folder, "resume": resume, "description": "distilling"}
    history = train(student, frozen, batches, config, settings, **loop)
    # 5. On request the student, with its averaged weights, is fine-tuned on labels alone.
    fine_tuning: list[Record] = []
    if config.fine_tune:
        if average is not None:
            average.copy_to(student)  # steps are counted from 1 again, so the average begins with what it is given
        tuned = finish(student)
        if average is not None and tuned is not student:
            average = EMATeacher(tuned, decay=average.decay)
        alone = replace(HARD_TARGETS, label_smoothing=config.label_smoothing, page_loss=config.page_loss)
        slow = replace(settings, epochs=config.fine_tune, lr=settings.lr / 10, schedule="constant", warmup=0.0)
        below = folder / FINE_TUNING if folder is not None else None
        resume = resume and below is not None and (below / CHECKPOINT).is_file()
        loop = {"ema": average, "output": below, "resume": resume, "description": "fine-tuning"}
        batches = labelled if labelled is not None else batches
        fine_tuning = train(tuned, None, batches, alone, slow, first_epoch=settings.epochs, **loop)
        student = tuned
    # 6. The student beside its teacher.
    kept = finish(average.module if average is not None else student).eval()
    if compare is not None:
        comparison = compare(kept)
    else:
        networks = {"teacher": frozen.networks[0], "student": kept}
        comparison = {name: evaluate(network) if evaluate is not None else {} for name, network in networks.items()}
    return Distillation(kept, history, fine_tuning, comparison, chance_warnings(history))


def train_networks(
    model: nn.Module,
    teacher: Teacher | None,
    data: Batches,
    config: DistillConfig | Mapping[str, DistillConfig],
    settings: TrainSettings,
    *,
    outputs: Outputs = image_outputs,
    evaluate: Evaluate | None = None,
    device: torch.device | str = "cpu",
    compile: bool = False,
    probe: bool = True,
    first_epoch: int = 0,
    **loop: Any,
) -> list[Record]:
    """`docvit.training.loop.fit` with a teacher or without one: the stage that every training here consists of.

    `model` is one network, or a `Sweep`; then `config` is by the same names, and so are the numbers in the records
    ("alpha 0.5/hard_loss"). With `probe`, training that has learnt nothing in its first epoch is warned of, and its
    first record holds "at_chance", the loss. `first_epoch` is where `data` begins to count, and `loop` goes to `fit`.

    Raises:
        DistillationError: networks, teacher and labels differ in their classes, or the gradients of a sweep would be
            clipped together.
    """
    if isinstance(model, Sweep) and len(model.names) > 1 and settings.clip is not None:
        raise DistillationError("clipping the gradients of a sweep together couples its networks: set clip to None")
    names = set(config) if isinstance(config, Mapping) else None
    if names != (set(model.names) if isinstance(model, Sweep) else None):
        raise DistillationError(
            "give a sweep one config per network, by the networks' names, and one network one config"
        )
    batches, bf16 = LaterEpochs(data, first_epoch), uses_bf16(settings, device)
    model.to(device)
    first = _first(batches).to(device) if probe else None
    if first is not None:
        check_classes(model, teacher, first, outputs, bf16=bf16)

    def records(shown: nn.Module) -> Record:
        record = dict(evaluate(shown)) if evaluate is not None else {}
        judged = first is not None and batches.epoch == 0
        return record | _at_chance(model, first, outputs, bf16=bf16) if judged else record

    loss = DistillationLoss(config, teacher, outputs, compile=compile)
    return fit(model, batches, loss, settings, evaluate=records, device=device, **loop)


def check_classes(model: nn.Module, teacher: Teacher | None, batch: Any, outputs: Outputs, *, bf16: bool) -> None:
    """One look at a batch before hours of training.

    Raises:
        DistillationError: logits that are none, another number of classes in the teacher than in the student, or labels
            outside of them.
    """
    ours = logits_of(model, batch, outputs, bf16=bf16)
    theirs = [logits_of(n, batch, outputs, bf16=bf16)[0] for n in teacher.networks] if teacher is not None else []
    for logits in (*ours, *theirs):
        if logits.ndim != 2:
            raise DistillationError(f"networks must give logits (batch, classes), not {tuple(logits.shape)}")
    lowest, highest = int(batch.labels.min()), int(batch.labels.max())
    for classes in (logits.shape[1] for logits in ours):
        for other in theirs:
            if other.shape[1] != classes:
                raise DistillationError(f"the teacher has {other.shape[1]} classes, the student {classes}")
        if lowest < 0 or highest >= classes:
            raise DistillationError(f"labels from {lowest} to {highest} do not fit a student of {classes} classes")


def chance_warnings(history: list[Record]) -> tuple[str, ...]:
    """What `train_networks` warned of, read from its records."""
    found = [(key, loss) for key, loss in history[0].items() if key.split("/")[-1] == AT_CHANCE] if history else []
    named = [(f"{key.rpartition('/')[0]}: " if "/" in key else "", loss) for key, loss in found]
    return tuple(f"{name}still at chance after the first epoch, with a loss of {loss:.3f}" for name, loss in named)


def _at_chance(model: nn.Module, batch: Any, outputs: Outputs, *, bf16: bool) -> Record:
    losses = []
    for logits in logits_of(model, batch, outputs, bf16=bf16):
        loss, chance = float(F.cross_entropy(logits.float(), batch.labels)), math.log(logits.shape[1])
        losses.append({} if loss < chance - 0.02 else {AT_CHANCE: loss})  # one that has learnt anything is far below
    found = named_records(model, losses)
    for warning in chance_warnings([found]):
        logger.warning("%s: its learning rate, optimiser or initialisation does not fit", warning)
    return found


def _first(batches: Batches) -> Any:
    batches.set_epoch(0)
    return next(iter(batches))
