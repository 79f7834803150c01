"""`DistillConfig`: what a student learns from, and with which weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from docvit.errors import SettingError
from kd.losses import FEATURE_DISTANCES, SoftLoss, soft_loss


class DistillationError(SettingError):
    """A teacher, a student and data that do not fit together; the message says how they differ."""


@dataclass(frozen=True)
class DistillConfig:
    """Weights of the terms of the distillation loss, for images and for documents.

    The loss of a batch is (1 - alpha) * cross-entropy + alpha * soft targets, plus the weighted distances of features
    and the weighted consistency. Documents add `page_loss` times the same of their pages. A batch without labels
    brings all but the cross-entropy.

    Attributes:
        alpha: weight of the soft targets, 0..1.
        page_alpha: likewise for pages; None for `alpha`.
        page_loss: weight of the loss of single pages. `distill_documents` takes it from the recipe.
        temperature: softens teacher and student.
        soft: a name in `kd.losses.SOFT_LOSSES`, or a function of that kind.
        label_smoothing: of the cross-entropy. `distill_documents` takes it from the recipe.
        labels: learn the labels, too; without, all but the cross-entropy counts.
        map_loss: weight of the distances to the maps of ONNX networks (`kd.documents.maps`).
        features: weights of distances between states, by the states' names (`kd.student.parse_pair`).
        distance: of features, see `kd.losses.feature_loss`.
        simkd: take over the teacher's classifier and learn its features instead (SimKD, arXiv 2203.14001): then labels
            and soft targets play no part, the loss is the mean squared distance of the features before the classifier.
        consistency: weight of the squared difference between the probabilities of the student and those of its own
            moving average (arXiv 1703.01780).
        ramp_up: share of all steps over which the weight of the teacher rises (`kd.losses.ramp_up`), for a teacher
            that knows nothing yet; None for a quarter where the teacher is the student's own moving average, else 0.
        fine_tune: epochs on labels alone afterwards, at a constant tenth of the learning rate.

    Raises:
        DistillationError: a value outside its range; says which.
    """

    alpha: float = 0.5
    page_alpha: float | None = None
    page_loss: float = 0.0
    temperature: float = 4.0
    soft: str | SoftLoss = "soft-targets"
    label_smoothing: float = 0.0
    labels: bool = True
    map_loss: float = 1.0
    features: Mapping[str, float] = field(default_factory=dict)
    distance: str = "cosine"
    simkd: bool = False
    consistency: float = 0.0
    ramp_up: float | None = None
    fine_tune: int = 0

    def __post_init__(self) -> None:
        for alpha in (self.alpha, self.alpha_of_pages):
            if not 0 <= alpha <= 1:
                raise DistillationError(f"alpha must lie in 0..1, not {alpha}")
        if not self.temperature > 0:
            raise DistillationError(f"the temperature must be positive, not {self.temperature}")
        if not 0 <= self.label_smoothing < 1:
            raise DistillationError(f"label smoothing must lie in 0..1 and below 1, not {self.label_smoothing}")
        if not 0 <= (self.ramp_up or 0) <= 1:
            raise DistillationError(f"ramp_up must lie in 0..1, not {self.ramp_up}")
        soft_loss(self.soft)
        if self.distance not in FEATURE_DISTANCES:
            raise DistillationError(f"no feature distance {self.distance!r}: choose {', '.join(FEATURE_DISTANCES)}")
        if not all(weight > 0 for weight in self.features.values()):
            raise DistillationError(f"the weights of features must be positive, not {dict(self.features)}")
        if min(self.page_loss, self.map_loss, self.consistency, self.fine_tune) < 0:
            raise DistillationError("page_loss, map_loss, consistency and fine_tune must be at least 0")
        if self.simkd and (self.features or self.consistency):
            raise DistillationError("simkd is a loss of its own: give neither features nor consistency with it")

    @property
    def alpha_of_pages(self) -> float:
        return self.alpha if self.page_alpha is None else self.page_alpha

    def teacher_outputs(self, features: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of the outputs that the loss reads from the teacher; `features`: the teacher's states to match."""
        if self.simkd:
            return ("document", "page_features") if self.page_loss else ("document",)
        names = list(features)
        if self.alpha or self.consistency:
            names.append("logits")
        if self.page_loss and (self.alpha_of_pages or self.consistency):
            names.append("page_logits")
        return tuple(sorted(set(names)))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a soft loss that is a function goes by its name."""
        name = self.soft if isinstance(self.soft, str) else getattr(self.soft, "__name__", type(self.soft).__name__)
        return {**asdict(self), "soft": name}


HARD_TARGETS = DistillConfig(alpha=0.0)
"""Labels alone: no teacher."""
