"""Strategies that classify a document from its pages: the seven of "Beyond Document Page Classification".

Van Landeghem et al., arXiv 2308.12896. A strategy chooses pages, groups them into the documents that the model sees,
and combines their probabilities. A page that is seen alone is a document of its own, with page index 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from docvit.documents.images import fit_image
from docvit.documents.pages import PageStack
from docvit.documents.rendering import Rendering
from docvit.errors import SettingError


@dataclass(frozen=True)
class Strategy:
    """How pages are chosen, seen by the model and combined.

    Attributes:
        choose: number of pages read -> indices, among them, of those that are used.
        views: the document of those pages -> the documents that the model sees.
        combine: probabilities (views, C) -> (C,), with sum 1.
        max_pages: number of pages to read, spread evenly; None for no limit of its own.
    """

    choose: Callable[[int], Sequence[int]]
    views: Callable[[PageStack, Rendering], list[PageStack]]
    combine: Callable[[Tensor], Tensor]
    max_pages: int | None = None

    def select(self, stack: PageStack) -> PageStack:
        """The document with the pages that are used."""
        return stack.take(self.choose(len(stack.pages)))


def _alone(stack: PageStack, _: Rendering) -> list[PageStack]:
    return [stack.take([i])._replace(indices=[0], num_pages=1) for i in range(len(stack.pages))]


def _grid(stack: PageStack, rendering: Rendering) -> list[PageStack]:
    return [stack._replace(pages=[tile(stack, rendering)], indices=[0], num_pages=1, words=())]


def tile(stack: PageStack, rendering: Rendering) -> np.ndarray:
    """All pages row by row on one white page of the rendering's size, in a grid that is as square as possible.

    All pages have the same scale; cells are as large as the largest page.
    """
    columns = math.ceil(math.sqrt(len(stack.pages)))
    rows = math.ceil(len(stack.pages) / columns)
    height, width = max(page.shape[0] for page in stack.pages), max(page.shape[1] for page in stack.pages)
    scale = rendering.size / max(rows * height, columns * width)
    canvas = Image.new(
        rendering.mode, (max(1, round(columns * width * scale)), max(1, round(rows * height * scale))), "white"
    )
    for i, page in enumerate(stack.pages):
        row, column = divmod(i, columns)
        size = (max(1, round(page.shape[1] * scale)), max(1, round(page.shape[0] * scale)))
        small = Image.fromarray(np.asarray(page)).resize(size, Image.Resampling.BOX)
        canvas.paste(small, (round(column * width * scale), round(row * height * scale)))
    return np.array(fit_image(canvas, rendering))


def _only(scores: Tensor) -> Tensor:
    return scores[0]


def _most_confident(scores: Tensor) -> Tensor:
    return scores[scores.amax(1).argmax()]


def _votes(scores: Tensor) -> Tensor:
    """Share of pages that vote for each class; the mean probability decides between equal shares."""
    votes = torch.bincount(scores.argmax(1), minlength=scores.shape[1]).double()
    tie_break = 1e-3  # of one vote
    return ((votes + tie_break * scores.double().mean(0)) / (len(scores) + tie_break)).to(scores.dtype)


STRATEGIES: dict[str, Strategy] = {
    "document": Strategy(range, lambda stack, _: [stack], _only),
    "first": Strategy(lambda count: [0], _alone, _only, max_pages=1),
    "second": Strategy(lambda count: [min(1, count - 1)], _alone, _only),
    "last": Strategy(lambda count: [count - 1], _alone, _only, max_pages=2),
    "grid": Strategy(range, _grid, _only),
    "max-confidence": Strategy(range, _alone, _most_confident),
    "soft-vote": Strategy(range, _alone, lambda scores: scores.mean(0)),
    "hard-vote": Strategy(range, _alone, _votes),
}
"""`document` is the model itself, which sees all pages at once. `second` takes the first page of a one-page document,
and the second page that was read of a longer one."""


def get_strategy(name: str) -> Strategy:
    """Raises ValueError if there is no strategy of this name."""
    if name not in STRATEGIES:
        raise SettingError(f"no strategy {name!r}: choose one of {', '.join(STRATEGIES)}")
    return STRATEGIES[name]
