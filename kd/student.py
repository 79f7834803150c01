"""The student: with projections of its states to the teacher's width, or with the teacher's classifier (SimKD)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from kd.config import DistillationError

BLOCK = re.compile(r"blocks\.(-?\d+)")

ROWS = {"pages": "page", "document": "document"}  # of every other state: token


class Pair(NamedTuple):
    """Names of the student's and of the teacher's state that features are matched between.

    `of_map`: the teacher's state is a map (`kd.documents.maps`), whose name says of which tokens it is.
    """

    student: str
    teacher: str
    of_map: bool = False

    def __str__(self) -> str:
        if self.of_map:
            return self.teacher
        return self.student if self.student == self.teacher else f"{self.student}:{self.teacher}"


def parse_pair(name: str, student: DocViTConfig, teacher: DocViTConfig) -> Pair:
    """`pages`, `document`, `embed`, `blocks.I`; `STUDENT:TEACHER` where they differ; blocks.-1 is the last.

    States of pages and documents fit any two models. Tokens have to be the same ones in both: the same rendering, patch
    size, normalisation and number of prefix tokens.

    Raises:
        DistillationError: no such state, one row per page beside one row per token, or other tokens.
    """
    ours, _, theirs = name.partition(":")
    pair = Pair(_resolve(ours, student), _resolve(theirs or ours, teacher))
    rows, of_teacher = (ROWS.get(state, "token") for state in (pair.student, pair.teacher))
    if rows != of_teacher:
        raise DistillationError(f"{pair}: {pair.student} has one row per {rows}, {pair.teacher} one per {of_teacher}")
    if rows == "token":
        _check_tokens(pair, student, teacher)
    return pair


def _resolve(state: str, config: DocViTConfig) -> str:
    block = BLOCK.fullmatch(state)
    if block and -config.depth <= int(block[1]) < config.depth:
        return f"blocks.{int(block[1]) % config.depth}"
    if state not in ("embed", *ROWS):
        blocks = f" or blocks.0 to blocks.{config.depth - 1} (blocks.-1 is the last)" if config.depth else ""
        raise DistillationError(f"no state {state!r}: choose pages, document, embed{blocks}")
    return state


def _check_tokens(pair: Pair, student: DocViTConfig, teacher: DocViTConfig) -> None:
    names = ("patch_size", "page_size", "renderer", "supersample", "in_chans", "mean", "std", "num_registers")
    differing = [n for n in names if getattr(student, n) != getattr(teacher, n)]
    if differing:
        values = ", ".join(f"{n} {getattr(teacher, n)} and {getattr(student, n)}" for n in differing)
        raise DistillationError(
            f"{pair}: teacher and student have other tokens ({values}): pages and document fit any two models"
        )


class StudentWithProjections(nn.Module):
    """A student and linear projections of its features: they are trained with it and are no part of what is kept.

    Source: Romero et al., "FitNets", arXiv 1412.6550.

    Args:
        pairs: the states to match; `projections` are in their order.
        widths: for each pair that of the student's state and that of the teacher's.
    """

    def __init__(self, student: nn.Module, pairs: Sequence[Pair], widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.student, self.pairs = student, tuple(pairs)
        self.projections = nn.ModuleList(nn.Linear(ours, theirs) for ours, theirs in widths)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        # timm's protocol, which a network need not have
        spared: set[str] = getattr(self.student, "no_weight_decay", set)()
        return {f"student.{name}" for name in spared}


def with_projections(
    student: DocViT, features: Sequence[str] = (), teacher: DocViT | None = None, *, maps: Mapping[str, int] = {}
) -> nn.Module:
    """The student ready to match the teacher's `features` (`parse_pair`) and maps; itself where there are none.

    Args:
        maps: channels of the maps that tokens are to predict, by name. A student without blocks, which reads no
            patches, predicts those of pages alone.
    """
    pairs, widths = [], []
    if teacher is not None:
        pairs = [parse_pair(name, student.config, teacher.config) for name in features]
        widths = [(_width(student, pair.student), _width(teacher, pair.teacher)) for pair in pairs]
    for name, channels in maps.items():
        of_patches = {"patches": channels} if student.config.reads_patches else {}
        for tokens, width in {**of_patches, "pages": 2 * channels}.items():
            pairs.append(Pair(tokens, map_state(name, tokens), of_map=True))
            widths.append((student.embed_dim, width))
    return StudentWithProjections(student, pairs, widths) if pairs else student


def map_state(name: str, tokens: str) -> str:
    """Name of the teacher's state that is this map of these tokens, "patches" or "pages"."""
    return f"{name}/{tokens}"


def _width(model: DocViT, state: str) -> int:
    return model.num_features if state == "document" else model.embed_dim


def without_projections(model: nn.Module) -> nn.Module:
    """The student inside `StudentWithProjections`; any other network as it is."""
    return model.student if isinstance(model, StudentWithProjections) else model


class SimKDHead(nn.Module):
    """A teacher's classifier, as it is, behind a projection of the student's features.

    The projection learns the features that the teacher's classifier expects. Both are linear, so that one linear head
    of the student's own width does the same afterwards.
    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (SimKD), arXiv 2203.14001.
    """

    def __init__(self, classifier: nn.Linear, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, classifier.in_features)
        self.classifier = deepcopy(classifier).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.projection(features))
        return logits

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Projection and classifier as one: W_t (W_p x + b_p) + b_t, multiplied out in float64."""
        inner, outer = self.projection, self.classifier
        head = nn.Linear(inner.in_features, outer.out_features).to(inner.weight)
        head.weight.copy_(outer.weight.double() @ inner.weight.double())
        head.bias.copy_(outer.weight.double() @ inner.bias.double() + outer.bias.double())
        return head


def reuse_classifier(student: DocViT, teacher: DocViT) -> None:
    """Replaces the student's classifier by the teacher's, behind a projection (`SimKDHead`).

    Raises:
        DistillationError: the teacher has none.
    """
    if not isinstance(teacher.head, nn.Linear):
        raise DistillationError("the teacher has no linear classifier to take over")
    student.head = SimKDHead(teacher.head, student.num_features).to(student.norm.weight)


def plain(model: nn.Module) -> DocViT:
    """A trained student as a DocViT like any other: without projections, and with a linear head instead of SimKD's.

    A copy where the head is folded, else the very student.
    """
    student = without_projections(model)
    assert isinstance(student, DocViT)
    if not isinstance(student.head, SimKDHead):
        return student
    result = deepcopy(student)
    result.head = student.head.folded()
    return result
