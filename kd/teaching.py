"""What a DocViT is taught in one step: labels, the teachers' word, their features, and the one loss of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.documents.patches import PatchSequence
from docvit.errors import SettingError
from docvit.model.docvit import DocViT
from docvit.training.recipe import Recipe
from kd.documents.paired import PairedBatch
from kd.documents.teacher_cache import TeacherCache
from kd.features import Pair, SimKDHead, StudentWithProjections
from kd.lessons import Targets
from kd.losses import FEATURE_DISTANCES, consistency, feature_loss, ramp_up, soft_loss


@dataclass(frozen=True)
class Teaching:
    """What a student is to take from its teachers, beside the labels.

    The loss of a batch is that of its documents plus `Recipe.page_loss` times that of its pages, each
    (1 - alpha) * cross-entropy + alpha * soft targets, plus the weighted distances of features and the consistency.
    Documents without labels bring the same without the cross-entropy.

    Attributes:
        alpha: weight of the soft targets of documents, 0..1.
        page_alpha: likewise of the pages' own; None for `alpha`.
        temperature, soft: see `kd.lessons.Targets`; `soft` by name.
        features: weights of distances between states, by the states' names (`kd.features.parse_pair`).
        distance: of features, see `kd.losses.feature_loss`.
        simkd: take over the teacher's classifier and learn its features instead (arXiv 2203.14001): then labels and
            soft targets play no part, the loss is the mean squared distance of the features before the classifier.
        consistency: weight of the squared difference between the probabilities of the student and those of its own
            moving average, which then sees the same pages changed and thinned out in another way (arXiv 1703.01780).
        ramp_up: share of all steps over which the weight of a teacher rises that is the student's own average, in
            `alpha`, `page_alpha` and `consistency`.
        fine_tune: epochs on labels alone afterwards, at a constant tenth of the learning rate.
    """

    alpha: float = Targets.alpha
    page_alpha: float | None = None
    temperature: float = Targets.temperature
    soft: str = "soft-targets"
    features: Mapping[str, float] = field(default_factory=dict)
    distance: str = "cosine"
    simkd: bool = False
    consistency: float = 0.0
    ramp_up: float = 0.25
    fine_tune: int = 0

    def __post_init__(self) -> None:
        self.targets(), self.targets(pages=True)  # they check what they are given
        if self.distance not in FEATURE_DISTANCES:
            raise SettingError(f"no feature distance {self.distance!r}: choose {', '.join(FEATURE_DISTANCES)}")
        if not all(weight > 0 for weight in self.features.values()):
            raise SettingError(f"the weights of features must be positive, not {dict(self.features)}")
        if self.consistency < 0 or not 0 <= self.ramp_up <= 1 or self.fine_tune < 0:
            raise SettingError("consistency and fine_tune must be at least 0, and ramp_up lie in 0..1")
        if self.simkd and (self.features or self.consistency):
            raise SettingError("simkd is a loss of its own: give neither features nor consistency with it")

    def targets(self, *, pages: bool = False, label_smoothing: float = 0.0) -> Targets:
        alpha = self.page_alpha if pages and self.page_alpha is not None else self.alpha
        return Targets(alpha=alpha, temperature=self.temperature, soft=self.soft, label_smoothing=label_smoothing)

    @property
    def without_labels(self) -> bool:
        """Whether anything is taught by documents that have none."""
        return bool(self.alpha or self.page_alpha or self.features or self.simkd or self.consistency)

    def states(self, pairs: Sequence[Pair], *, pages: bool) -> tuple[str, ...]:
        """The states that teachers are asked for; `pages`: whether pages count by themselves."""
        if self.simkd:
            return ("document", "page_features") if pages else ("document",)
        asked = [pair.teacher for pair in pairs]
        if self.alpha or self.consistency:
            asked.append("logits")
        if pages and (self.targets(pages=True).alpha or self.consistency):
            asked.append("page_logits")
        return tuple(sorted(set(asked)))


class Guide:
    """The word of the teachers on a batch: out of the cache where it is known, else asked and put there.

    Teachers are in eval and without gradients. What they say goes by the teacher's number and the state, "0.logits".
    """

    def __init__(self, teachers: Sequence[DocViT], states: Sequence[str], cache: TeacherCache | None = None) -> None:
        self.teachers, self.states, self.cache = tuple(teachers), tuple(states), cache

    @torch.no_grad()
    def __call__(self, batch: PairedBatch) -> dict[str, Tensor]:
        if not self.states:
            return {}
        if batch.told is not None:
            return batch.told
        told: dict[str, Tensor] = {}
        for number, (teacher, view) in enumerate(zip(self.teachers, batch.views, strict=True)):
            found = _states(teacher.eval(), batch.sequence if view is None else view, self.states)
            told |= {f"{number}.{state}": found[state] for state in self.states}
        if self.cache is not None:
            self.cache.write(batch.key, told)
        return told

    def logits(self, told: Mapping[str, Tensor], state: str, temperature: float) -> Tensor:
        """Those of the only teacher; of several, logits whose softened probabilities are the mean of theirs."""
        given = [told[f"{number}.{state}"].float() for number in range(len(self.teachers))]
        if len(given) == 1:
            return given[0]
        softened = torch.stack([logits.div(temperature).log_softmax(1) for logits in given])
        return temperature * (softened.logsumexp(0) - math.log(len(given)))


Term = tuple[str, float, Tensor]  # name, weight, value


class DocumentLesson:
    """The loss for `fit` of a `StudentWithProjections` on `PairedBatch`es; `steps` are those of the whole run.

    `own_average`: whether the teacher is the student's, which at first knows nothing.
    """

    def __init__(
        self, teaching: Teaching, recipe: Recipe, guide: Guide, *, steps: int, own_average: bool = False
    ) -> None:
        self.teaching, self.page_loss, self.guide = teaching, recipe.page_loss, guide
        self.documents = teaching.targets(label_smoothing=recipe.label_smoothing)
        self.pages = teaching.targets(pages=True, label_smoothing=recipe.label_smoothing)
        self.ramp = int(teaching.ramp_up * steps) if own_average else 0

    def __call__(self, pupil: StudentWithProjections, batch: PairedBatch) -> Mapping[str, Tensor]:
        risen = ramp_up(batch.step, self.ramp)
        parts = self._parts(pupil, batch, batch.labels, risen)
        if batch.unlabelled is None:
            return parts
        without_labels = self._parts(pupil, batch.unlabelled, None, risen)["loss"]
        return parts | {"loss": parts["loss"] + without_labels, "unlabelled_loss": without_labels}

    def _parts(
        self, pupil: StudentWithProjections, batch: PairedBatch, labels: Tensor | None, risen: float
    ) -> dict[str, Tensor]:
        told = self.guide(batch)
        states = _states(pupil.student, batch.sequence, [pair.student for pair in pupil.pairs])
        if self.teaching.simkd:
            terms = self._of_classifier(pupil.student.head, states, told)
        else:
            terms = self._of_logits("logits", self.documents, states, told, labels, risen)
            if self.page_loss:
                page_labels = None if labels is None else labels[batch.sequence.document_of_page.to(labels.device)]
                of_pages = self._of_logits("page_logits", self.pages, states, told, page_labels, risen)
                terms += [(f"page_{name}", self.page_loss * share, value) for name, share, value in of_pages]
            terms += self._of_features(pupil, states, told)
        figures = {name: value for name, _, value in terms} | {"loss": _weighted_sum(terms, states["logits"])}
        if labels is not None:
            figures["accuracy"] = (states["logits"].argmax(1) == labels).float().mean()
        return figures

    def _of_logits(
        self,
        name: str,
        targets: Targets,
        states: Mapping[str, Tensor],
        told: Mapping[str, Tensor],
        labels: Tensor | None,
        risen: float,
    ) -> list[Term]:
        alpha, weight = risen * targets.alpha, risen * self.teaching.consistency
        ours, terms = states[name].float(), []
        if labels is not None:
            hard = F.cross_entropy(ours, labels, label_smoothing=targets.label_smoothing)
            terms.append(("hard_loss", 1 - alpha, hard))
        if alpha or weight:
            theirs = self.guide.logits(told, name, targets.temperature)
        if alpha:
            aims = theirs.argmax(1) if labels is None else labels  # some soft losses look at the target's class
            soft = soft_loss(targets.soft)(ours, theirs, aims, targets.temperature)
            terms.append(("soft_loss", alpha, soft))
        if weight:
            terms.append(("consistency_loss", weight, consistency(ours, theirs)))
        return terms

    def _of_features(
        self, pupil: StudentWithProjections, states: Mapping[str, Tensor], told: Mapping[str, Tensor]
    ) -> list[Term]:
        weighted = zip(pupil.pairs, pupil.projections, self.teaching.features.values(), strict=True)
        return [
            (
                f"{pair}_loss",
                share,
                feature_loss(projection(states[pair.student]), told[f"0.{pair.teacher}"], kind=self.teaching.distance),
            )
            for pair, projection, share in weighted
        ]

    def _of_classifier(self, head: nn.Module, states: Mapping[str, Tensor], told: Mapping[str, Tensor]) -> list[Term]:
        assert isinstance(head, SimKDHead)
        shares = {"document": 1.0} | ({"page_features": self.page_loss} if self.page_loss else {})
        return [
            (f"{name}_loss", share, feature_loss(head.projection(states[name]), told[f"0.{name}"], kind="euclidean"))
            for name, share in shares.items()
        ]


def _states(model: DocViT, view: PatchSequence, names: Sequence[str]) -> dict[str, Tensor]:
    of_pages_alone = {"page_features", "page_logits"}  # which the model does not name
    states = model.forward_intermediates(view, {"pages", "document", "logits", *names} - of_pages_alone)
    alone = model.alone(states["pages"])
    return states | {"page_features": alone, "page_logits": model.head(alone)}


def _weighted_sum(terms: Sequence[Term], like: Tensor) -> Tensor:
    # in order and without factors of one: labels alone give the loss of a training without teachers, to the bit
    weighted = [value if share == 1 else share * value for _, share, value in terms]
    return sum(weighted[1:], weighted[0]) if weighted else like.new_zeros(())
