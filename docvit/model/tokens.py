"""The order of the tokens of a packed batch, their segments, and their rotation: once per batch, for all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from docvit.documents.patches import PatchSequence, segment_ids
from docvit.model.attention import MaskedSegments, Segments


def token_indices(batch: PatchSequence, num_prefix: int) -> Tensor:
    """(T,) index of each patch among all tokens, where every page's patches follow its prefix tokens (CPU)."""
    return torch.arange(batch.num_patches) + num_prefix * (batch.page_of_patch + 1)


class TokenLayout(NamedTuple):
    """The order and the segments of the tokens of a batch; computed once and shared by all blocks.

    T + N * K tokens, ordered page by page: a page's K prefix tokens (class token, registers), then its patches.
    """

    order: Tensor  # (T + N * K,) index into [patches; prefixes] that gives page order
    class_tokens: Tensor  # (N,) index of each page's class token
    document: Tensor  # (T + N * K,) document of every token
    document_of_page: Tensor  # (N,)
    page_counts: Tensor  # (B,) pages of each document
    segments: dict[str, Segments | MaskedSegments]  # scope -> segments in which all tokens attend
    last: dict[str, Segments | MaskedSegments]  # likewise for the last block, in which class tokens alone attend

    @classmethod
    def of(cls, batch: PatchSequence, num_prefix: int, scopes: Sequence[str]) -> TokenLayout:
        device = batch.patches.device
        begins = batch.page_bounds + num_prefix * torch.arange(batch.num_pages + 1)  # in tokens
        prefix = begins[:-1, None] + torch.arange(num_prefix)  # (N, K)
        indices = torch.cat([token_indices(batch, num_prefix), prefix.flatten()])
        bounds = {"page": begins, "document": begins[batch.document_bounds]}
        document = segment_ids(bounds["document"], indices.shape[0])

        def segments(scope: str, attending: Tensor | None = None) -> Segments | MaskedSegments:
            if torch.compiler.is_exporting():
                segment = segment_ids(bounds[scope], indices.shape[0]).to(device)
                return MaskedSegments.of(segment, None if attending is None else attending.to(device))
            return Segments.of(bounds[scope], device, attending=attending)

        return cls(
            order=torch.argsort(indices).to(device),
            class_tokens=begins[:-1].to(device),
            document=document.to(device),
            document_of_page=batch.document_of_page.to(device),
            page_counts=batch.document_bounds.diff().to(device),
            segments={scope: segments(scope) for scope in sorted(set(scopes))},
            last={scope: segments(scope, begins[:-1]) for scope in scopes[-1:]},
        )


class Rotation(NamedTuple):
    """The rotary angles of each token's queries and keys; computed once per batch."""

    cos: Tensor  # (T + N * K, head_dim / 2)
    sin: Tensor

    def at(self, indices: Tensor | None) -> Rotation:
        return self if indices is None else Rotation(*(part.index_select(0, indices) for part in self))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates the pairs of channels (i, i + d / 2) of `x` (T, H, d) (RoFormer, arXiv 2104.09864)."""
    cos, sin = (part[:, None].to(x.dtype) for part in rotation)  # (T, 1, d / 2)
    one, other = x.chunk(2, -1)  # halves and not neighbours: memory is read in a row
    return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)
