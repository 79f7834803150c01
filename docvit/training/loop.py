"""The training loop. One for everything: models, batches and losses differ, the loop does not."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from docvit.errors import SettingError, UserError
from docvit.hardware import has_fast_bf16
from docvit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from docvit.training.ema import EMATeacher
from docvit.training.history import draw_curves, write_metrics

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.safetensors"
SECONDS_BETWEEN_PICTURES = 60  # drawing takes longer than a short epoch


class TrainingError(UserError):
    """Training that cannot begin, go on or be resumed; the message says why."""


class Batches(Protocol):
    """An epoch of batches, each with `.to(device)`; the same number of them every epoch."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """The next iteration is epoch `epoch` without its first `skip` batches."""


Loss = Callable[[Any, Any, float], Mapping[str, Tensor]]
"""loss(model, batch, progress) -> its parts by name; progress is the share of all steps already done, 0..1."""

Record = dict[str, float]


@dataclass(frozen=True)
class TrainSettings:
    """What the loop needs to know.

    Attributes:
        epochs: passes over the batches.
        lr: peak learning rate.
        weight_decay: on matrices only; biases, norms and embeddings are left alone.
        optimizer: a name that timm's `create_optimizer_v2` knows.
        momentum: for optimisers that have one.
        schedule: `cosine` (to zero) or `constant`.
        warmup: share of all steps in which the learning rate rises from zero.
        clip: largest gradient norm; None for no clipping.
        bf16: forward passes under bfloat16 autocast, on devices that are fast at it; weights, gradients and optimiser
            stay float32.
        seed: random seed of what the model draws.
        checkpoint_minutes: time between checkpoints within an epoch.
    """

    epochs: int = 16
    lr: float = 1e-3
    weight_decay: float = 0.1
    optimizer: str = "adamw"
    momentum: float = 0.9
    schedule: str = "cosine"
    warmup: float = 0.1
    clip: float | None = 1.0
    bf16: bool = True
    seed: int = 0
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "constant"):
            raise SettingError(f"no schedule {self.schedule!r}: choose cosine or constant")
        if self.epochs < 1:
            raise SettingError(f"epochs must be at least 1, not {self.epochs}")


class _Objective(nn.Module):
    """Model and loss as one module: DDP synchronises what runs inside its own forward, whatever the loss calls."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any, progress: float) -> dict[str, Tensor]:
        return dict(self.loss(self.model, batch, progress))


def uses_bf16(settings: TrainSettings, device: torch.device | str) -> bool:
    """Whether training under these settings computes in bfloat16 on this device."""
    return settings.bf16 and has_fast_bf16(device)


def fit(
    model: nn.Module,
    batches: Batches,
    loss: Loss,
    settings: TrainSettings,
    *,
    output: str | os.PathLike[str] | None = None,
    ema: EMATeacher | None = None,
    evaluate: Callable[[nn.Module], Record] | None = None,
    save: Callable[[nn.Module], None] | None = None,
    resume: bool = False,
    device: torch.device | str = "cpu",
    description: str = "training",
    every_epoch: bool = True,
) -> list[Record]:
    """Trains `model` in place.

    Args:
        batches: see `Batches`.
        loss: see `Loss`; the part called `"loss"` is minimised, all are logged.
        output: folder for `checkpoint.safetensors`, `metrics.csv` and `curves.png` (drawn at the end, and at most once
            a minute before); None to write nothing.
        ema: a moving average of the model's weights, updated after every step; it is what `evaluate` and `save` get.
        evaluate: called after every epoch, its numbers are logged.
        save: called after every epoch to write the model in a form that others load.
        resume: go on from the checkpoint in `output`; the result is the one that an uninterrupted run gives. With more
            epochs than the run was begun with, it goes on under the schedule of the longer run. (With several processes
            only if the model draws nothing at random: the first one's generator is all that is kept.)
        every_epoch: write files after every epoch; else once `checkpoint_minutes` have passed, and at the end: for
            epochs of seconds.

    Returns:
        One record per epoch: epoch, lr, seconds, the mean of each part of the loss, the numbers of `evaluate`.

    Raises:
        TrainingError: nothing to resume, a damaged checkpoint, other settings, batches or weights than the
            checkpoint's, no `evaluate` where there was one, or a loss that is no longer finite.
        KeyboardInterrupt: after Ctrl-C (or SIGTERM), once the current step is done and a checkpoint is written.
    """
    settings = replace(settings, bf16=uses_bf16(settings, device))
    folder = Path(output) if output is not None else None
    run = _Run(model, batches, loss, settings, folder, torch.device(device), ema, evaluated=evaluate is not None)
    if resume:
        run.restore()
    with _interruptible() as stop:
        while run.epoch < settings.epochs:
            run.train_epoch(stop, description)
            if evaluate is not None:
                was = run.result.training
                run.history[-1].update({name: float(value) for name, value in evaluate(run.result.eval()).items()})
                run.result.train(was)
            stopping = _agreed(stop.is_set())  # Ctrl-C during the evaluation
            run.finish_epoch(save, every_epoch=every_epoch or stopping)
            if stopping:
                raise KeyboardInterrupt
    return run.history


@dataclass(eq=False)
class _Run:
    """The state of one run: what a checkpoint holds."""

    model: nn.Module
    batches: Batches
    loss: Loss
    settings: TrainSettings
    output: Path | None
    device: torch.device
    ema: EMATeacher | None
    evaluated: bool
    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        from timm.optim import create_optimizer_v2  # here, since a mistake in a command need not wait for timm
        from timm.scheduler.cosine_lr import CosineLRScheduler

        settings = self.settings
        self.is_main = not dist.is_initialized() or dist.get_rank() == 0
        if self.output and self.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(settings.seed)
        self.objective: nn.Module = _Objective(self.model.to(self.device), self.loss)
        if dist.is_initialized():
            self.objective = DistributedDataParallel(self.objective)
        self.result = self.model if self.ema is None else self.ema.module
        self.optimizer = create_optimizer_v2(
            self.model,
            settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
        self.total = max(1, settings.epochs * len(self.batches))
        self.warmup = int(settings.warmup * self.total)
        length = max(2, self.total)  # timm warns of a schedule of one step, which has no other rate than its first
        self.schedule = CosineLRScheduler(self.optimizer, t_initial=length, warmup_t=self.warmup, t_in_epochs=False)
        self.written = self.drawn = time.monotonic()

    def train_epoch(self, stop: threading.Event, description: str) -> None:
        """From wherever this epoch stands to its end, and its record."""
        self.model.train()
        self.batches.set_epoch(self.epoch, skip=self.batch)
        count = len(self.batches)
        title = f"{description} {self.epoch + 1}/{self.settings.epochs}"
        bar = tqdm(total=count, initial=self.batch, desc=title, leave=False, disable=None if self.is_main else True)
        begun = saved = time.monotonic()
        pending: list[dict[str, Tensor]] = []  # read back now and then: every .item() waits for the device
        with bar:
            for batch in self.batches:
                pending.append(self._step(batch))
                self.batch += 1
                bar.update()
                if len(pending) >= 50 or self.batch == count:
                    bar.set_postfix(loss=f"{self._collect(pending):.3f}")
                late = time.monotonic() - saved > 60 * self.settings.checkpoint_minutes
                stopping = _agreed(stop.is_set())  # asked once: Ctrl-C may come at any time
                if stopping or late:
                    self._collect(pending)
                    self.seconds += time.monotonic() - begun
                    self.checkpoint()
                    begun = saved = time.monotonic()
                if stopping:
                    raise KeyboardInterrupt
        self._collect(pending)
        self.seconds += time.monotonic() - begun
        record = {"epoch": self.epoch + 1.0, "lr": self.optimizer.param_groups[0]["lr"], "seconds": self.seconds}
        self.history.append(record | {name: total / self.batch for name, total in self.sums.items()})

    def _step(self, batch: Any) -> dict[str, Tensor]:
        if self.settings.schedule == "cosine":
            self.schedule.step_update(self.step)
        elif self.warmup:
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (self.step + 1) / self.warmup)
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            parts = self.objective(batch, self.step / self.total)
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimizer.step()
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.model, step=self.step)
        return {name: value.detach() for name, value in parts.items()}

    def _collect(self, pending: list[dict[str, Tensor]]) -> float:
        """Adds the waiting losses to the epoch's sums; gives the last one."""
        last = math.nan
        for parts in pending:
            for name, value in parts.items():
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
            last = float(parts["loss"])
            if not math.isfinite(last):
                raise TrainingError(
                    f"the loss is {last} in epoch {self.epoch + 1}: lower the learning rate (it peaks at "
                    f"{self.settings.lr:g}) or train in float32; the last checkpoint is untouched"
                )
        pending.clear()
        return last

    def finish_epoch(self, save: Callable[[nn.Module], None] | None, *, every_epoch: bool = True) -> None:
        self.epoch, self.batch, self.sums, self.seconds = self.epoch + 1, 0, {}, 0.0
        late = time.monotonic() - self.written > 60 * self.settings.checkpoint_minutes
        if not (every_epoch or late or self.epoch == self.settings.epochs):
            return
        if self.output and self.is_main:
            if save is not None:
                save(self.result)
            write_metrics(self.history, self.output)
            if self.epoch == self.settings.epochs or time.monotonic() - self.drawn > SECONDS_BETWEEN_PICTURES:
                draw_curves(self.history, self.output)
                self.drawn = time.monotonic()
        self.checkpoint()

    def checkpoint(self) -> None:
        if self.output and self.is_main:
            counters = {"epoch": self.epoch, "batch": self.batch, "step": self.step, "seconds": self.seconds}
            values = {**counters, "batches": len(self.batches), "sums": self.sums, "history": self.history}
            values["settings"] = asdict(self.settings)
            values |= {"data": self._data(), "evaluated": self.evaluated}
            rng = {"cpu": torch.get_rng_state()}
            if self.device.type == "cuda":
                rng["cuda"] = torch.cuda.get_rng_state(self.device)
            state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "rng": rng}
            if self.ema is not None:
                state["ema"] = self.ema.module.state_dict()
            save_checkpoint(self.output / CHECKPOINT, {**state, "values": values})
            self.written = time.monotonic()

    def restore(self) -> None:
        if self.output is None or not (self.output / CHECKPOINT).is_file():
            raise TrainingError(f"{self.output} holds no {CHECKPOINT}: there is no run to resume")
        try:
            state = load_checkpoint(self.output / CHECKPOINT)
            self._check(state)
            self._load(state)
        except CheckpointError as error:
            raise TrainingError(f"{error}; it cannot be resumed: train anew into another folder") from error
        except (RuntimeError, ValueError) as error:  # weights of other shapes or names
            first, *_ = str(error).splitlines()  # torch lists every single name
            raise TrainingError(f"the run in {self.output} had another model: {first.rstrip(':')}") from error
        logger.info("resumed at epoch %d, batch %d", self.epoch + 1, self.batch)

    def _check(self, state: dict[str, Any]) -> None:
        values = state["values"]
        mine = asdict(self.settings)
        found = dict(values["settings"], checkpoint_minutes=mine["checkpoint_minutes"])
        found["epochs"] = max(found["epochs"], mine["epochs"])  # it may go on for longer
        differing = [k for k in mine if found.get(k) != mine[k]]
        if differing or ("ema" in state) != (self.ema is not None):
            named = ", ".join(f"{k} was {values['settings'].get(k)!r}" for k in differing) or "the use of an EMA"
            raise TrainingError(f"the run in {self.output} had other settings: {named}")
        if values["evaluated"] and not self.evaluated:
            raise TrainingError(f"the run in {self.output} was evaluated on held-out data: give it again (--valid)")
        if values["batches"] != len(self.batches):
            counts = f"{values['batches']} batches per epoch, and here are {len(self.batches)}"
            raise TrainingError(f"the run in {self.output} had other data: {counts}")
        if values["data"] != self._data():
            raise TrainingError(f"the run in {self.output} had other data: other documents, labels, groups or folds")

    def _data(self) -> str | None:
        fingerprint = getattr(self.batches, "fingerprint", None)  # batches need not have one
        return None if fingerprint is None else fingerprint()

    def _load(self, state: dict[str, Any]) -> None:
        values = state["values"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.epoch, self.batch, self.step = values["epoch"], values["batch"], values["step"]
        self.sums, self.seconds, self.history = values["sums"], values["seconds"], values["history"]


def _agreed(flag: bool) -> bool:
    """True on every process as soon as it is true on one."""
    if not dist.is_initialized():
        return flag
    shared = torch.tensor(float(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return bool(shared)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, so that the step in progress is finished first; a second one ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        logger.warning("stopping after this step; a checkpoint to resume from is written (once more to stop at once)")

    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.signal(number, handle) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)
