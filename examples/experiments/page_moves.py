"""Documents whose pages are moved, and what they may have been before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from measured import Page

TASKS = "reversed", "first-last", "swapped"
COPIES = ("untouched", "reversed", "first-last", "last-first", "swapped", "swapped")  # of a document, in training


def moved(count: int, task: str, random: np.random.Generator) -> list[int]:
    """The page indices 0..count-1 in the order of `task`."""
    order = list(range(count))
    if task == "reversed":
        order.reverse()
    elif task == "first-last":
        order.append(order.pop(0))
    elif task == "last-first":
        order.insert(0, order.pop())
    elif task == "swapped":
        one, other = random.choice(count, 2, replace=False)
        order[one], order[other] = order[other], order[one]
    elif task != "untouched":
        raise ValueError(f"no way to move pages called {task!r}")
    return order


def undone(order: Sequence[int], task: str) -> list[tuple[int, ...]]:
    """What documents in this order may have been before `task`: one order, or for `swapped` as many as pairs."""
    if task == "reversed":
        return [tuple(reversed(order))]
    if task == "first-last":
        return [(order[-1], *order[:-1])]
    if task != "swapped":
        raise ValueError(f"{task!r} is no task")
    swaps = [{one: other, other: one} for one, other in combinations(order, 2)]
    return [tuple(swap.get(page, page) for page in order) for swap in swaps]


def ordered(pages: Sequence[Page], order: Sequence[int]) -> list[Page]:
    """A document of `pages` in this order, numbered anew."""
    return [pages[i]._replace(index=torch.tensor(new)) for new, i in enumerate(order)]
