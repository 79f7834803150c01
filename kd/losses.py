"""Distillation losses: pure functions of logits or features, each with its paper.

Everywhere: logits are (B, C), targets are class indices (B,), the result is a float32 scalar. Half precision is raised
to float32 before anything else happens, and no gradient reaches the teacher. Shapes that differ raise `ValueError`:
broadcasting a teacher of other classes would train without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from docvit.errors import SettingError

SoftLoss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""(student_logits, teacher_logits, targets, temperature) -> scalar."""


def soft_targets(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher || student) of the distributions softened by T, averaged over the batch.

    The factor T^2 keeps the gradient's size as T changes.
    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    student, teacher = _pair(student_logits, teacher_logits, temperature)
    return _kl(teacher / temperature, student / temperature) * temperature**2


def standardised(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`soft_targets` of logits that are brought to mean 0 and standard deviation 1, each sample by itself.

    The student need not match the size of the teacher's logits, only their relations. With two classes every
    standardised row is (1, -1) or (-1, 1): the teacher then says which class, no longer how surely.
    Source: Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427.
    """
    student, teacher = _pair(student_logits, teacher_logits, temperature)
    return soft_targets(_standardise(student), _standardise(teacher), temperature)


def dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    target_weight: float = 1.0,
    other_weight: float = 8.0,
) -> Tensor:
    """Decoupled distillation: T^2 * (target_weight * TCKD + other_weight * NCKD), averaged over the batch.

    TCKD is the divergence of (target, all others) as two classes, NCKD that among the others alone, which plain soft
    targets weigh by the probability that the teacher leaves to them. The weights are the paper's alpha and beta. With
    two classes NCKD is zero.
    Source: Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, section 3.
    """
    student, teacher = _pair(student_logits, teacher_logits, temperature)
    student, teacher = student / temperature, teacher / temperature
    target = _kl(_target_or_other(teacher, targets), _target_or_other(student, targets))
    other = _kl(_others(teacher, targets), _others(student, targets))
    return (target_weight * target + other_weight * other) * temperature**2


def dist(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Tensor:
    """T^2 * (inter_weight * inter-class + intra_weight * intra-class) relation loss, each 1 - Pearson's correlation.

    Inter-class compares the probabilities of one sample over the classes, intra-class those of one class over the
    batch. The weights are the paper's beta and gamma. What does not vary has no correlation: two such rows count 0 (as
    does the intra-class part of a single sample), one beside a row that varies counts 1/2.
    Source: Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536.
    """
    student, teacher = _pair(student_logits, teacher_logits, temperature)
    student, teacher = (student / temperature).softmax(dim=1), (teacher / temperature).softmax(dim=1)
    inter = _uncorrelated(student, teacher)
    intra = _uncorrelated(student.T, teacher.T)
    return (inter_weight * inter + intra_weight * intra) * temperature**2


SOFT_LOSSES: Mapping[str, SoftLoss] = MappingProxyType(
    {
        "soft-targets": lambda student, teacher, _, temperature: soft_targets(student, teacher, temperature),
        "standardised": lambda student, teacher, _, temperature: standardised(student, teacher, temperature),
        "dkd": lambda student, teacher, targets, temperature: dkd(student, teacher, targets, temperature=temperature),
        "dist": lambda student, teacher, _, temperature: dist(student, teacher, temperature=temperature),
    }
)
"""What `distillation_loss` and the command line choose from, by name; `kd.cli` lists the names without torch."""


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    targets: Tensor,
    *,
    alpha: float,
    temperature: float,
    soft: str | SoftLoss = "soft-targets",
    label_smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """(1 - alpha) * cross-entropy + alpha * soft, where `soft` carries its factor T^2.

    `soft` is a name in `SOFT_LOSSES` or a function of that kind. With alpha = 0 the loss is the cross-entropy to the
    bit and the teacher's logits are never read (None will do). Returns "loss" and its unweighted parts "hard" and
    "soft". Raises `ValueError` for an alpha outside 0..1, an unknown name, a missing teacher, or logits whose shapes
    differ.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in 0..1, not {alpha}")
    hard = F.cross_entropy(raise_precision(student_logits), targets, label_smoothing=label_smoothing)
    if alpha == 0:
        return {"loss": hard, "hard": hard, "soft": torch.zeros_like(hard)}
    if teacher_logits is None:
        raise ValueError(f"alpha = {alpha} needs the teacher's logits")
    term = soft_loss(soft)(student_logits, teacher_logits, targets, temperature)
    return {"loss": (1 - alpha) * hard + alpha * term, "hard": hard, "soft": term}


def soft_loss(name: str | SoftLoss) -> SoftLoss:
    """The soft loss of that name; a function is handed through. Raises `ValueError` for an unknown name."""
    if callable(name):
        return name
    if name not in SOFT_LOSSES:
        raise SettingError(f"no soft loss is called {name!r}; there are {', '.join(SOFT_LOSSES)}")
    return SOFT_LOSSES[name]


def consistency(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean squared difference of the class probabilities, the term that draws a student to its own moving average.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", arXiv 1703.01780, section 2.
    """
    student, teacher = _pair(student_logits, teacher_logits)
    return F.mse_loss(student.softmax(dim=1), teacher.softmax(dim=1))


def ramp_up(step: float, length: float) -> float:
    """Weight of a teacher that still learns: exp(-5 (1 - step / length)^2), 1 from `length` on (arXiv 1703.01780)."""
    remaining = 1 - min(step, length) / length if length > 0 else 0.0
    return math.exp(-5 * remaining**2)


def feature_loss(student_features: Tensor, teacher_features: Tensor, *, kind: str = "cosine") -> Tensor:
    """Distance of features of one shape (..., D), averaged over everything but what the kind sums over.

    Features of another width go through a linear projection first, which is trained with the student and not kept.
    Convolutional maps (B, C, H, W) go in as (B, H, W, C).

    - `"cosine"`: 1 - cosine over D; knows directions only.
    - `"mse"`: mean squared difference after layer normalisation over D without learned scale, so that no channel
      rules by its size. Source: Wei et al., arXiv 2205.14141 (they normalise the teacher alone).
    - `"euclidean"`: mean squared difference as it is. Source: Romero et al., "FitNets", arXiv 1412.6550.
    - `"smooth-l1"`: squared difference up to 1, from there on absolute; for features that are standardised. Source:
      Ranzinger et al., "AM-RADIO", arXiv 2312.06709.

    Features without rows have no distance: 0.

    Raises `ValueError` for another kind or shapes that differ.
    """
    if kind not in FEATURE_DISTANCES:
        raise ValueError(f"no feature distance is called {kind!r}; there are {', '.join(FEATURE_DISTANCES)}")
    if student_features.shape != teacher_features.shape:
        shapes = f"{tuple(student_features.shape)} and {tuple(teacher_features.shape)}"
        raise ValueError(f"features must have one shape, not {shapes}; a linear projection maps one width to another")
    student, teacher = raise_precision(student_features), raise_precision(teacher_features.detach())
    if not student.numel():
        return student.sum()
    return FEATURE_DISTANCES[kind](student, teacher)


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    # half the squared distance of unit vectors is 1 - cosine, and exactly 0 for equal ones
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(dim=-1).mean() / 2


def _normalised_mse(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(F.layer_norm(student, student.shape[-1:]), F.layer_norm(teacher, teacher.shape[-1:]))


FEATURE_DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"cosine": _cosine, "mse": _normalised_mse, "euclidean": F.mse_loss, "smooth-l1": F.smooth_l1_loss}
)


def raise_precision(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))  # float64 stays float64


def _pair(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        shapes = f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        raise ValueError(f"student and teacher logits must both be (batch, classes), not {shapes}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, not {temperature}")
    return raise_precision(student_logits), raise_precision(teacher_logits.detach())


def _kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) of two sets of logits (B, C), averaged over B."""
    student, teacher = student.log_softmax(dim=1), teacher.log_softmax(dim=1)
    return (teacher.exp() * (teacher - student)).sum(dim=1).mean()  # F.kl_div is not batched by vmap


def _standardise(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(dim=1, keepdim=True)
    # 1e-12 is far below any logits' variance; it gives rows without spread a finite gradient
    return centred * torch.rsqrt(centred.square().mean(dim=1, keepdim=True) + 1e-12)


def _others(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits of all classes but the target, (B, C - 1); gathered, since a mask gives shapes that depend on data."""
    index = torch.arange(logits.shape[1] - 1, device=logits.device)  # [C-1]
    target = rearrange(targets, "b -> b 1")
    return logits.gather(1, index + (index >= target))  # [B, C-1]


def _target_or_other(logits: Tensor, targets: Tensor) -> Tensor:
    """Logits (B, 2) of "the target" and "any other class"."""
    target = logits.gather(1, rearrange(targets, "b -> b 1"))
    return torch.cat([target, _others(logits, targets).logsumexp(dim=1, keepdim=True)], dim=1)


def _uncorrelated(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - Pearson's correlation along the rows of two matrices, averaged over the rows."""
    # half the squared distance of unit vectors: exactly 0 for equal rows, where 1 - cosine would leave rounding
    return (_unit(student) - _unit(teacher)).square().sum(dim=1).mean() / 2


def _unit(rows: Tensor) -> Tensor:
    # below 1e-6 a row of probabilities is constant but for rounding
    return F.normalize(rows - rows.mean(dim=1, keepdim=True), dim=1, eps=1e-6)
