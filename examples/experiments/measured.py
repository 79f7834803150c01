"""The ink stem's features of pages, computed once for all orders of the pages: nothing in them is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from docvit import DocViT, PatchSequence
from docvit.model.stems import InkStem


@dataclass(frozen=True)
class MeasuredSequence(PatchSequence):
    """A packed batch of the ink stem's features: `patches` (T, features) instead of pixels.

    Attributes:
        statistics: (N, statistics) page statistics, for the class tokens.
    """

    statistics: Tensor = field(kw_only=True)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PatchSequence:
        moved = super().to(device, non_blocking)
        return replace(moved, statistics=self.statistics.to(device, non_blocking=non_blocking))  # type: ignore[call-arg]

    def pin_memory(self) -> PatchSequence:
        return replace(super().pin_memory(), statistics=self.statistics.pin_memory())  # type: ignore[call-arg]


class MeasuredStem(InkStem):
    """The ink stem, with the same parameters, for a `MeasuredSequence`."""

    def observe(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        assert isinstance(batch, MeasuredSequence)
        return batch.patches, batch.statistics


class Page(NamedTuple):
    """The features of one page's patches that are not blank."""

    patches: Tensor  # (T, features)
    statistics: Tensor  # (statistics,)
    row: Tensor  # (T,)
    col: Tensor  # (T,)
    grid: Tensor  # (2,)
    index: Tensor  # ()


Kept = Mapping[str, Tensor]  # the features of one document, as they are written to disk


@torch.inference_mode()
def measure(model: DocViT, document: PatchSequence) -> Kept:
    """The features of a batch of one document by the stem of `model`, in half precision."""
    stem = model.patch_embed
    assert isinstance(stem, InkStem)
    features, statistics = stem.observe(document, document.page_bounds.diff())
    addresses = {name: getattr(document, name) for name in ("row", "col", "grids", "page_index", "page_bounds")}
    return {"patches": features.half(), "statistics": statistics, **addresses}


def pages_of(document: Kept) -> list[Page]:
    """The features that `measure` gave, page by page."""
    counts = document["page_bounds"].diff().tolist()
    patches, row, col = (document[name].split(counts) for name in ("patches", "row", "col"))
    rows = zip(patches, document["statistics"], row, col, document["grids"], document["page_index"], strict=True)
    return [Page(*row) for row in rows]


def put_together(documents: Sequence[Sequence[Page]]) -> MeasuredSequence:
    """A packed batch of these documents."""
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
