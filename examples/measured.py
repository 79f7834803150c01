"""What the ink stem measures of pages, once, for many models to train on: nothing in it is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from docvit import DocViT, PatchSequence
from docvit.stems import STEMS, InkStem

MEASURED_INK = "measured-ink"


@dataclass(frozen=True)
class MeasuredSequence(PatchSequence):
    """A packed batch that the ink stem has measured: `patches` (T, features) are what tokens are told of.

    Attributes:
        statistics: (N, statistics) what class tokens are told of.
    """

    statistics: Tensor


class MeasuredStem(InkStem):
    """The ink stem, with the same parameters, for a `MeasuredSequence`."""

    def observe(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, MeasuredSequence)
        return batch.patches, batch.statistics


STEMS[MEASURED_INK] = MeasuredStem


class Page(NamedTuple):
    """The patches of a page that say something, measured."""

    patches: Tensor  # (T, features)
    statistics: Tensor  # (statistics,)
    row: Tensor  # (T,)
    col: Tensor  # (T,)
    grid: Tensor  # (2,)
    index: Tensor  # ()


Kept = Mapping[str, Tensor]  # the measured pages of one document, as they are written to disk


@torch.inference_mode()
def measure(model: DocViT, document: PatchSequence) -> Kept:
    """What the stem of `model` measures of a batch of one document, features in half precision."""
    stem = model.patch_embed
    assert isinstance(stem, InkStem)
    features, statistics = stem.observe(document, document.page_bounds.diff())
    addresses = {name: getattr(document, name) for name in ("row", "col", "grids", "page_index", "page_bounds")}
    return {"patches": features.half(), "statistics": statistics, **addresses}


def pages_of(document: Kept) -> list[Page]:
    """The pages that `measure` gave, one by one."""
    counts = document["page_bounds"].diff().tolist()
    patches, row, col = (document[name].split(counts) for name in ("patches", "row", "col"))
    rows = zip(patches, document["statistics"], row, col, document["grids"], document["page_index"], strict=True)
    return [Page(*row) for row in rows]


def put_together(documents: Sequence[Sequence[Page]]) -> MeasuredSequence:
    """A packed batch of documents of these pages."""
    pages = [page for document in documents for page in document]
    counts = torch.tensor([len(page.row) for page in pages])
    index = torch.stack([page.index for page in pages])
    return MeasuredSequence(
        patches=torch.cat([page.patches for page in pages]),
        statistics=torch.stack([page.statistics for page in pages]),
        page=index.repeat_interleave(counts),
        row=torch.cat([page.row for page in pages]),
        col=torch.cat([page.col for page in pages]),
        grids=torch.stack([page.grid for page in pages]),
        page_index=index,
        page_bounds=F.pad(counts.cumsum(0), (1, 0)),
        document_bounds=F.pad(torch.tensor([len(document) for document in documents]).cumsum(0), (1, 0)),
    )
