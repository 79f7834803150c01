"""The numbers printed at the edges of pages, and how those of one page compare with those of the other pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from glyphs import LETTER, OTHER, Pixels, find_glyphs, read_glyphs
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from docvit import DocumentError, DocViT, Rendering
from docvit.documents.workers import read_documents

SHARP = Rendering(size=1536, multiple=1, supersample=1, mode="L")  # digits of 10 pt on A4 are 13 px high
PITCH = 1.05  # heights from middle to middle of a number's digits; with a space between them it is 1.15 and more
GAP = 0.23  # heights up to which a letter belongs to the same word; a space is 0.35 and more
NUMBERS = 12  # kept of a page: those nearest to its edges
SAME_PLACE = 0.03, 0.01  # of a page's width and height; also mirrored, as on left and right pages
COMPARED = 4  # features per page


def numbers_of(classes: NDArray[np.int64], boxes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Numbers (N, 3) from the classes (K,) and boxes (K, 4) of glyphs: value, and its middle, x and y, in px.

    A number is digits of one height and on one line that stand side by side, without a letter beside them; of more than
    four digits, the last four.
    """
    letters = boxes[classes == LETTER]
    digits, boxes = (values[classes < LETTER] for values in (classes, boxes))
    runs: list[list[int]] = []
    for here in boxes[:, 0].argsort(kind="stable"):
        for run in runs:
            if _follows(boxes[run[-1]], boxes[here]):
                run.append(int(here))
                break
        else:
            runs.append([int(here)])
    found = []
    for run in runs:
        left, top = boxes[run, :2].min(0)
        right, bottom = boxes[run, 2:].max(0)
        near = GAP * (bottom - top)
        beside = (letters[:, 0] < right + near) & (letters[:, 2] > left - near)
        beside &= (letters[:, 1] < bottom) & (letters[:, 3] > top)
        if not beside.any():
            value = int("".join(map(str, digits[run[-4:]])))
            found.append((value, (left + right) / 2, (top + bottom) / 2))
    return np.array(found, float).reshape(-1, 3)


def _follows(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    height = max(one[3] - one[1], other[3] - other[1])
    apart = (other[0] + other[2] - one[0] - one[2]) / 2
    uneven = max(abs(one[1] - other[1]), abs(one[3] - other[3]))
    return bool(0 < apart <= PITCH * height and uneven <= max(1, 0.15 * height))


def read_page(model: DocViT, page: Pixels) -> Tensor:
    """The numbers nearest to the edges of a grey page (H, W): (12, 3), value, x and y in 0..1, NaN to the end."""
    dark, light = find_glyphs(page), find_glyphs(255 - page)
    read, other = read_glyphs(model, dark), read_glyphs(model, light)
    inks = (_outside(read, dark.boxes, other, light.boxes), _outside(other, light.boxes, read, dark.boxes))
    found = np.concatenate([numbers_of(*ink) for ink in inks]) / (1, page.shape[1], page.shape[0])
    found = found[np.minimum(found[:, 2], 1 - found[:, 2]).argsort(kind="stable")[:NUMBERS]]
    return F.pad(torch.from_numpy(found).float(), (0, 0, 0, NUMBERS - len(found)), value=torch.nan)


def _outside(
    classes: NDArray[np.int64], boxes: NDArray[np.int64], other: NDArray[np.int64], around: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Without what lies in a character of the other ink, as what an 8 encloses does."""
    around = around[other < OTHER]
    within = (boxes[:, None, :2] >= around[None, :, :2]).all(2) & (boxes[:, None, 2:] <= around[None, :, 2:]).all(2)
    keep = ~within.any(1)
    return classes[keep], boxes[keep]


def read_numbers(model: DocViT, paths: Sequence[str], *, workers: int) -> Iterator[tuple[str, dict[int, Tensor]]]:
    """Each document's numbers, as `read_page` gives them, by page index; those that cannot be read are left out."""
    results = read_documents(paths, SHARP, workers=workers)
    for result in tqdm(results, total=len(paths), desc="reading numbers", unit="doc", disable=None):
        if isinstance(result, DocumentError):
            tqdm.write(f"without numbers: {type(result).__name__}: {result}")
        else:
            pages = [read_page(model, page) for page in result.pages]
            yield result.path, dict(zip(result.indices, pages, strict=True))


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
