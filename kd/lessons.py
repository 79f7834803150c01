"""What a student is taught in one step: hard targets, soft targets, and the one loss of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from docvit.errors import SettingError
from kd.losses import SoftLoss, distillation_loss, ramp_up, soft_loss
from kd.sweep import InputsOf, by_name, join


@dataclass(frozen=True)
class Targets:
    """What a student is asked to match: (1 - alpha) * the labels + alpha * the teacher's softened probabilities.

    With a `ramp_up`, alpha is what the weight of the soft targets rises to.

    Attributes:
        alpha: weight of the soft targets, 0..1; with 0 no teacher is asked.
        temperature: softens teacher and student.
        soft: a name in `kd.losses.SOFT_LOSSES`, or a function of that kind.
        label_smoothing: of the hard targets.
        ramp_up: share of all steps in which the weight of the soft targets rises to `alpha` (`kd.losses.ramp_up`),
            for a teacher that knows nothing yet: a network that is slow to start finds it easier to agree with its
            own average than to learn the labels.
    """

    alpha: float = 0.5
    temperature: float = 4.0
    soft: str | SoftLoss = "soft-targets"
    label_smoothing: float = 0.0
    ramp_up: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise SettingError(f"alpha must lie in 0..1, not {self.alpha}")
        if not self.temperature > 0:
            raise SettingError(f"the temperature must be positive, not {self.temperature}")
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label smoothing must lie in 0..1 and below 1, not {self.label_smoothing}")
        if not 0 <= self.ramp_up <= 1:
            raise SettingError(f"ramp_up must lie in 0..1, not {self.ramp_up}")
        soft_loss(self.soft)

    def losses(self, student_logits: Tensor, teacher_logits: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        """`kd.losses.distillation_loss` of this mixture, all of `alpha` in it."""
        return distillation_loss(
            student_logits,
            teacher_logits,
            labels,
            alpha=self.alpha,
            temperature=self.temperature,
            soft=self.soft,
            label_smoothing=self.label_smoothing,
        )


HARD_TARGETS = Targets(alpha=0.0)


class Frozen(nn.Module):
    """A teacher that only predicts: in eval and without gradients, whatever is asked of it or of what contains it."""

    def __init__(self, teacher: nn.Module, *, compile: bool = False) -> None:
        super().__init__()
        self.teacher = teacher
        self._predict = torch.compile(_call) if compile else _call
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, inputs: Any) -> Tensor:
        # the network inside may be part of something else too, which its owner puts in training mode
        if any(module.training for module in self.teacher.modules()):
            self.teacher.eval()
        logits: Tensor = self._predict(self.teacher, inputs)
        return logits


class Lesson:
    """The loss for `docvit.train.fit`: every network's own by its name, and their sum.

    `progress` says what share of all steps has been done, for targets that ramp up.
    """

    def __init__(
        self,
        targets: Mapping[str, Targets],
        teacher: Frozen | None,
        *,
        inputs_of: InputsOf,
        progress: Callable[[], float] = lambda: 1.0,
        compile: bool = False,
    ) -> None:
        self.targets, self.inputs_of, self.progress = targets, inputs_of, progress
        self.teacher = teacher if any(mixed.alpha > 0 for mixed in targets.values()) else None
        self._losses = torch.compile(_losses) if compile else _losses

    def __call__(self, model: nn.Module, batch: Any) -> Mapping[str, Tensor]:
        inputs = self.inputs_of(batch)
        taught = self.teacher(inputs) if self.teacher is not None else None
        return self._losses(model, inputs, taught, batch.labels, self.targets, self._risen(batch.labels.device))

    def _risen(self, device: torch.device) -> dict[str, Tensor]:
        """What share of its alpha each teacher that ramps up gets in this step."""
        done = self.progress()
        # tensors, since a compiled loss would be compiled anew for every number
        return {
            name: torch.full((), ramp_up(done, mixed.ramp_up), device=device)
            for name, mixed in self.targets.items()
            if mixed.alpha and mixed.ramp_up
        }


def _call(network: nn.Module, inputs: Any) -> Any:
    return network(inputs)


def _losses(
    model: nn.Module,
    inputs: Any,
    taught: Tensor | None,
    labels: Tensor,
    targets: Mapping[str, Targets],
    risen: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    logits = by_name(model(inputs))
    parts = {name: mixed.losses(logits[name], taught, labels) for name, mixed in targets.items()}
    for name, share in risen.items():  # share * alpha instead of alpha
        hard = parts[name]["hard"]
        parts[name]["loss"] = torch.lerp(hard, parts[name]["loss"], share.to(hard))
    first, *others = [of_one["loss"] for of_one in parts.values()]
    named = {join(name, part): of_one[part] for name, of_one in parts.items() for part in ("hard", "soft")}
    return {"loss": sum(others, first)} | named
