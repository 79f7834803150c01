"""The numbers printed at the edges of pages, and how those of one page compare with those of the other pages."""

from __future__ import annotations

import re

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from docvit.documents.words import Words

EDGE = 0.13  # of a page's height, at its top and at its bottom
NUMBER = re.compile(r"(?<!\w)\d+(?!\w)")  # no letters beside it
NUMBERS = 12  # kept of a page: those nearest to its edges
SAME_PLACE = 0.03, 0.01  # of a page's width and height; also mirrored, as on left and right pages
COMPARED = 4  # features per page


def read_page(words: Words) -> Tensor:
    """The numbers nearest to the edges of a page: (12, 3), value, x and y in 0..1, NaN to the end.

    A number is digits without letters beside them; of more than four digits, the last four.
    """
    found = []
    for text, (left, top, right, bottom) in words:
        y = (top + bottom) / 2
        if min(y, 1 - y) < EDGE:
            for number in NUMBER.finditer(text):
                x = left + (right - left) * (number.start() + number.end()) / (2 * len(text))
                found.append((int(number[0][-4:]), x, y))
    found.sort(key=lambda number: min(number[2], 1 - number[2]))
    numbers = torch.tensor(found[:NUMBERS]).reshape(-1, 3)
    return F.pad(numbers, (0, 0, 0, NUMBERS - len(numbers)), value=torch.nan)


def compare_numbers(numbers: Tensor) -> Tensor:
    """How each page's numbers compare with those at the same position on the other pages of its document.

    Args:
        numbers: (N, 12, 3) of its pages, as `read_page` gives them.

    Returns:
        (N, 4) at the top and at the bottom: how many of the others have a smaller number there less how many a greater
        one, and how many have another one, each as a share of the others. Of several numbers of a page that differ the
        first counts: the one nearest to the edge.
    """
    value, x, y = numbers.unbind(2)  # (N, 12) each

    def differences(values: Tensor, mirrored: bool = False) -> Tensor:  # (N, 12, N, 12)
        return values[:, :, None, None] - (1 - values if mirrored else values)[None, None]

    near = torch.minimum(differences(x).abs(), differences(x, mirrored=True).abs()) < SAME_PLACE[0]
    near &= differences(y).abs() < SAME_PLACE[1]
    greater = differences(value).sign().where(near, 0.0)
    first = 2.0 ** -torch.arange(NUMBERS)[:, None]  # the first that differs outweighs all after it
    features = []
    for edge in (y < 0.5, y > 0.5):
        here = edge[:, :, None, None]
        compared = ((greater * here).sum(3).sign() * first).sum(1).sign()  # (N, N)
        features += [compared.sum(1), compared.abs().sum(1)]
    return torch.stack(features, 1) / max(1, len(numbers) - 1)


def numbering(count: int, random: np.random.Generator) -> Tensor:
    """Page numbers as a document of `count` pages may have them: (count, 3), value, x and y in 0..1, NaN for none."""
    value = random.integers(30) + random.integers(1, 3, count).cumsum()
    x = np.full(count, random.random())
    y = np.full(count, random.uniform(0.89, 1) if random.random() < 0.7 else random.uniform(0, 0.11))
    if random.random() < 0.25:
        x[1::2] = 1 - x[1::2]
    missing = random.random(count) < random.choice([0.0, 0.1, 0.3])
    missing[0] |= random.random() < 0.5
    value, x, y = (np.where(missing, np.nan, values) for values in (value, x, y))
    return torch.from_numpy(np.stack([value, x, y], 1)).float()
