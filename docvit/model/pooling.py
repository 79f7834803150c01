"""Pooling: page tokens become the document's feature."""

from __future__ import annotations

import torch
from torch import Tensor

POOLINGS = {"mean": 1, "max": 1, "mean+std": 2, "mean+std+first": 3}  # how many times a page token's width

LEAST_SPREAD = 1e-3  # the root's slope at 0 is infinite


def pool(pages: Tensor, counts: Tensor, how: str) -> Tensor:
    """Page tokens (N, D) of documents of `counts` (B,) pages: (B, F)."""

    def reduce(x: Tensor, by: str) -> Tensor:
        # unsafe: no check of the lengths, which would wait for the device
        return torch.segment_reduce(x, by, lengths=counts, unsafe=True)

    if how in ("mean", "max"):
        return reduce(pages, how)
    mean = reduce(pages, "mean")
    variance = reduce(pages.square(), "mean") - mean.square()
    parts = [mean, variance.clamp(min=LEAST_SPREAD**2).sqrt()]
    if how == "mean+std+first":
        parts.append(pages.index_select(0, counts.cumsum(0) - counts))
    return torch.cat(parts, 1)
