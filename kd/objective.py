"""The distillation loss: labels, soft targets, features and consistency, and the one sum of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.config import DistillConfig
from kd.losses import consistency, feature_loss, raise_precision, ramp_up, soft_loss
from kd.student import Pair, SimKDHead, StudentWithProjections, without_projections
from kd.sweep import Sweep
from kd.teacher import Outputs, Teacher, ensemble_logits, image_outputs


class Term(NamedTuple):
    """One term of the loss; `alone` is the weight it has where there is no teacher."""

    name: str
    weight: float
    value: Tensor
    alone: float = 0.0


class DistillationLoss:
    """The loss for `docvit.training.loop.fit`.

    It gives "loss", which is minimised, its unweighted terms ("hard_loss", "soft_loss", "consistency_loss", those of
    pages as "page_hard_loss" .., one per pair of features) and "accuracy"; for a `Sweep` the sum of its networks'
    losses, and their terms by name ("alpha 0.5/hard_loss").

    A batch has `.labels`; with a `page_loss` it has `.page_labels`, and what it may have as `.unlabelled` is a second
    batch, whose loss without labels is added.

    Args:
        config: for a `Sweep` one per network, by name.
        teacher: None where no config needs one.
        compile: run student and loss through `torch.compile`.
    """

    def __init__(
        self,
        config: DistillConfig | Mapping[str, DistillConfig],
        teacher: Teacher | None,
        outputs: Outputs = image_outputs,
        *,
        compile: bool = False,
    ) -> None:
        self.config, self.teacher, self.outputs = config, teacher, outputs
        self._losses = torch.compile(_losses) if compile else _losses

    def __call__(self, model: nn.Module, batch: Any, progress: float) -> Mapping[str, Tensor]:
        parts = self._of_batch(model, batch, batch.labels, progress)
        further = getattr(batch, "unlabelled", None)  # batches of images have none
        if further is None:
            return parts
        without_labels = self._of_batch(model, further, None, progress)["loss"]
        return parts | {"loss": parts["loss"] + without_labels, "unlabelled_loss": without_labels}

    def _of_batch(self, model: nn.Module, batch: Any, labels: Tensor | None, progress: float) -> dict[str, Tensor]:
        configs = list(self.config.values()) if isinstance(self.config, Mapping) else [self.config]
        states = [pair.teacher for pair in _pairs(model)]
        names = sorted({name for config in configs for name in config.teacher_outputs(states)})
        given = self.teacher(batch, names) if self.teacher is not None else {}
        # tensors, since a compiled loss would be compiled anew for every number
        shares = [
            torch.full((), ramp_up(progress, config.ramp_up), device=batch.labels.device) if config.ramp_up else None
            for config in configs
        ]
        return self._losses(model, self.config, self.outputs, batch, labels, given, shares)


def _losses(
    model: nn.Module,
    config: DistillConfig | Mapping[str, DistillConfig],
    outputs: Outputs,
    batch: Any,
    labels: Tensor | None,
    given: Mapping[str, Tensor],
    shares: Sequence[Tensor | None],
) -> dict[str, Tensor]:
    """Of one network or of a sweep; `shares`: how much of its weight each config's teacher has in this step."""
    if isinstance(config, DistillConfig):
        return _losses_of_network(model, config, outputs, batch, labels, given, shares[0])
    assert isinstance(model, Sweep)
    found = {
        name: _losses_of_network(model[name], one, outputs, batch, labels, given, share)
        for (name, one), share in zip(config.items(), shares, strict=True)
    }
    first, *others = [parts.pop("loss") for parts in found.values()]
    named = {f"{name}/{part}": value for name, parts in found.items() for part, value in parts.items()}
    return {"loss": sum(others, first), **named}


def _losses_of_network(
    model: nn.Module,
    config: DistillConfig,
    outputs: Outputs,
    batch: Any,
    labels: Tensor | None,
    given: Mapping[str, Tensor],
    share: Tensor | None,
) -> dict[str, Tensor]:
    student, pairs = without_projections(model), _pairs(model)
    labels = labels if config.labels else None
    names = ["logits", *(["page_logits"] if config.page_loss else []), *(pair.student for pair in pairs)]
    states = outputs(student, batch, [*names, "document", "page_features"] if config.simkd else names)
    if config.simkd:
        terms = _simkd_terms(config, student.head, states, given)
    else:
        terms = _logit_terms(config, config.alpha, "logits", states, labels, given)
        if config.page_loss:
            page_labels = None if labels is None else batch.page_labels
            of_pages = _logit_terms(config, config.alpha_of_pages, "page_logits", states, page_labels, given)
            terms += [
                Term(f"page_{t.name}", config.page_loss * t.weight, t.value, config.page_loss * t.alone)
                for t in of_pages
            ]
        if isinstance(model, StudentWithProjections):
            terms += _feature_terms(config, model, states, given)
    loss = _weighted_sum([(term.weight, term.value) for term in terms], states["logits"])
    if share is not None:
        hard = _weighted_sum([(term.alone, term.value) for term in terms if term.alone], loss)
        loss = torch.lerp(hard, loss, share.to(hard))
    parts = {term.name: term.value for term in terms} | {"loss": loss}
    if labels is not None:
        parts["accuracy"] = (states["logits"].argmax(1) == labels).float().mean()
    return parts


def _logit_terms(
    config: DistillConfig,
    alpha: float,
    name: str,
    states: Mapping[str, Tensor],
    labels: Tensor | None,
    given: Mapping[str, Tensor],
) -> list[Term]:
    ours, terms = raise_precision(states[name]), []
    if labels is not None:
        hard = F.cross_entropy(ours, labels, label_smoothing=config.label_smoothing)
        terms.append(Term("hard_loss", 1 - alpha, hard, alone=1.0))
    if alpha or config.consistency:
        theirs = ensemble_logits(given, name, config.temperature)
    if alpha:
        targets = theirs.argmax(1) if labels is None else labels  # some soft losses look at the target's class
        soft = soft_loss(config.soft)(ours, theirs, targets, config.temperature)
        terms.append(Term("soft_loss", alpha, soft))
    if config.consistency:
        terms.append(Term("consistency_loss", config.consistency, consistency(ours, theirs)))
    return terms


def _feature_terms(
    config: DistillConfig, model: StudentWithProjections, states: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> list[Term]:
    terms, weights = [], iter(config.features.values())
    for pair, projection in zip(model.pairs, model.projections, strict=True):
        weight, kind = (config.map_loss, "smooth-l1") if pair.of_map else (next(weights), config.distance)
        distance = feature_loss(projection(states[pair.student]), given[f"0.{pair.teacher}"], kind=kind)
        terms.append(Term(f"{pair}_loss", weight, distance))
    return terms


def _simkd_terms(
    config: DistillConfig, head: Any, states: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> list[Term]:
    assert isinstance(head, SimKDHead)
    weights = {"document": 1.0, "page_features": config.page_loss}
    return [
        Term(f"{n}_loss", weights[n], feature_loss(head.projection(states[n]), given[f"0.{n}"], kind="euclidean"))
        for n in config.teacher_outputs()
    ]


def _pairs(model: nn.Module) -> tuple[Pair, ...]:
    return model.pairs if isinstance(model, StudentWithProjections) else ()


def _weighted_sum(terms: Sequence[tuple[float, Tensor]], like: Tensor) -> Tensor:
    # in order and without factors of one: labels alone give the loss of a training without teachers, to the bit
    weighted = [value if weight == 1 else weight * value for weight, value in terms]
    return sum(weighted[1:], weighted[0]) if weighted else raise_precision(like.new_zeros(()))
