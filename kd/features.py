"""What a student takes from inside its teacher: named states through projections, or the whole classifier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from kd.distill import DistillationError
from kd.losses import Projection

BLOCK = re.compile(r"blocks\.(-?\d+)")

ROWS = {"pages": "page", "document": "document"}  # of every other state: token


class Pair(NamedTuple):
    """Two states of `DocViT.forward_intermediates` that are to be alike."""

    student: str
    teacher: str

    def __str__(self) -> str:
        return self.student if self.student == self.teacher else f"{self.student}:{self.teacher}"


def parse_pair(name: str, student: DocViTConfig, teacher: DocViTConfig) -> Pair:
    """`pages`, `document`, `embed`, `blocks.I`; `STUDENT:TEACHER` where they differ; blocks.-1 is the last.

    States of pages and documents fit any two models. Tokens have to be the same ones in both: the same rendering, patch
    size, normalisation and number of prefix tokens.

    Raises:
        DistillationError: no such state, one row a page beside one row a token, or other tokens.
    """
    ours, _, theirs = name.partition(":")
    pair = Pair(_resolve(ours, student), _resolve(theirs or ours, teacher))
    rows, of_teacher = (ROWS.get(state, "token") for state in pair)
    if rows != of_teacher:
        raise DistillationError(f"{pair}: {pair.student} has one row a {rows}, {pair.teacher} one a {of_teacher}")
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
        told = ", ".join(f"{n} {getattr(teacher, n)} and {getattr(student, n)}" for n in differing)
        raise DistillationError(
            f"{pair}: teacher and student have other tokens ({told}): pages and document fit any two models"
        )


class StudentWithProjections(nn.Module):
    """A student and the projections that it is taught through; they learn along and are no part of it.

    `projections` are in the order of `pairs`, each from the student's width to the teacher's.
    """

    def __init__(self, student: DocViT, pairs: Sequence[Pair] = (), teacher: DocViT | None = None) -> None:
        super().__init__()
        self.student, self.pairs = student, tuple(pairs)
        self.projections = nn.ModuleList(
            Projection(_width(student, pair.student), _width(teacher or student, pair.teacher)) for pair in pairs
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {f"student.{name}" for name in self.student.no_weight_decay()}


def _width(model: DocViT, state: str) -> int:
    return model.num_features if state == "document" else model.embed_dim


class SimKDHead(nn.Module):
    """A teacher's classifier, as it is, behind a projection of the student's features.

    In training the projection is drawn to what the teacher's classifier is used to; both are linear, so that one
    linear head of the student's own width does the same afterwards.
    Source: Chen et al., "Knowledge Distillation with the Reused Teacher Classifier" (SimKD), arXiv 2203.14001.
    """

    def __init__(self, classifier: nn.Linear, width: int) -> None:
        super().__init__()
        self.projection = Projection(width, classifier.in_features)
        self.classifier = deepcopy(classifier).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.projection(features))
        return logits

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Projection and classifier as one: W_t (W_p x + b_p) + b_t, multiplied out in float64."""
        inner, outer = self.projection.linear, self.classifier
        head = nn.Linear(inner.in_features, outer.out_features).to(inner.weight)
        head.weight.copy_(outer.weight.double() @ inner.weight.double())
        head.bias.copy_(outer.weight.double() @ inner.bias.double() + outer.bias.double())
        return head


def reuse_classifier(student: DocViT, teacher: DocViT) -> None:
    """Puts the teacher's classifier in the place of the student's.

    Raises:
        DistillationError: the teacher has none.
    """
    if not isinstance(teacher.head, nn.Linear):
        raise DistillationError("the teacher has no linear classifier to take over")
    student.head = SimKDHead(teacher.head, student.num_features).to(student.norm.weight)


def plain(student: DocViT) -> DocViT:
    """The student as a DocViT like any other: a copy with a linear head where it has a borrowed one."""
    if not isinstance(student.head, SimKDHead):
        return student
    result = deepcopy(student)
    result.head = student.head.folded()
    return result
