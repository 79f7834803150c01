"""Documents whose pages lie on a side or upside down are judged once their pages are turned upright."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

from torch import Tensor

from docvit.documents.pages import PageStack

Result = TypeVar("Result")


class Upright(NamedTuple):
    """Documents with their pages turned upright; one without turned pages is the same object as before.

    Attributes:
        stacks: the documents.
        quarters: of each, the quarter turns clockwise by which its pages lay turned.
    """

    stacks: list[PageStack]
    quarters: list[list[int]]


def judge_upright(
    judge: Callable[[list[PageStack]], tuple[Iterable[Result], Sequence[Tensor]]], stacks: Sequence[PageStack]
) -> tuple[list[Result], Upright]:
    """What `judge` makes of documents; of those with turned pages alone, it is asked again once they are upright.

    Args:
        judge: documents -> what it makes of each, and the quarter turns clockwise (N,) by which the pages of each lie
            turned (`DocViT.forward_turns`). Another number of them than of pages, as where many pages are tiled on
            one, says nothing.
    """
    if not stacks:
        return [], Upright([], [])
    judged, turned = judge(list(stacks))
    results, upright = list(judged), list(stacks)
    quarters = [
        q.tolist() if len(q) == len(s.pages) else [0] * len(s.pages) for s, q in zip(stacks, turned, strict=True)
    ]
    lying = [n for n, of_pages in enumerate(quarters) if any(of_pages)]
    for n in lying:
        upright[n] = stacks[n].turn([-k for k in quarters[n]])
    if lying:
        again, _ = judge([upright[n] for n in lying])
        for n, result in zip(lying, again, strict=True):
            results[n] = result
    return results, Upright(upright, quarters)
