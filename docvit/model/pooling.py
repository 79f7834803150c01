"""Pooling: page tokens become the document's feature, one or several statistics of them side by side."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_SPREAD = 1e-3  # the root's slope at 0 is infinite


def width(pooling: str) -> int:
    """How many times a page token's width the feature has."""
    return len(pooling.split("+"))


def pool(pages: Tensor, counts: Tensor, pooling: str) -> Tensor:
    """Page tokens (N, D) of documents of `counts` (B,) pages: (B, width * D)."""

    def reduce(x: Tensor, by: str) -> Tensor:
        # unsafe: no check of the lengths, which would wait for the device
        return torch.segment_reduce(x, by, lengths=counts, unsafe=True)

    parts: dict[str, Tensor] = {}
    for part in pooling.split("+"):
        if part in ("mean", "max"):
            parts[part] = reduce(pages, part)
        elif part == "std":
            variance = reduce(pages.square(), "mean") - parts["mean"].square()
            parts[part] = variance.clamp(min=LEAST_SPREAD**2).sqrt()
        elif part == "first":
            parts[part] = pages.index_select(0, counts.cumsum(0) - counts)
    return torch.cat(list(parts.values()), 1)


def pool_alone(pages: Tensor, pooling: str) -> Tensor:
    """Features (N, width * D) of N documents of one page each: their pages (N, D) differ from no other."""
    parts = {"std": torch.full_like(pages, LEAST_SPREAD)}
    return torch.cat([parts.get(part, pages) for part in pooling.split("+")], 1)


def floats_kept(pooling: str, dim: int, pages: int, documents: int) -> int:
    """Numbers kept for a backward pass: the feature, and what the spread of the page tokens is made of."""
    spread = "std" in pooling.split("+")
    return spread * (pages + 4 * documents) * dim + width(pooling) * dim * documents
