"""Where the tokens of a packed batch sit, and how far rotary positions turn them: once a batch, for all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from docvit.documents.patches import PatchSequence
from docvit.errors import SettingError
from docvit.model.attention import Segments


def token_indices(batch: PatchSequence, num_prefix: int) -> Tensor:
    """(T,) where each patch stands among all tokens, when every page's patches follow its prefix tokens (CPU)."""
    return torch.arange(batch.num_patches) + num_prefix * (batch.page_of_patch + 1)


SCOPES = ("page", "document", "page-then-document:K", "alternate:K")


def parse_scopes(scopes: str, depth: int) -> tuple[str, ...]:
    """`scopes` spelled out, one of "page" and "document" for each block.

    Raises:
        ValueError: not one of the four forms, or K outside 1..depth.
    """
    name, _, number = scopes.partition(":")
    if scopes in ("page", "document"):
        return (scopes,) * depth
    if name in ("page-then-document", "alternate") and number.isdecimal() and 1 <= int(number) <= depth:
        k = int(number)
        document = (lambda i: i >= depth - k) if name == "page-then-document" else (lambda i: i % k == k - 1)
        return tuple("document" if document(i) else "page" for i in range(depth))
    raise SettingError(f"scopes {scopes!r} of {depth} blocks: choose {', '.join(SCOPES)}, with K from 1 to {depth}")


class TokenLayout(NamedTuple):
    """Where every token of a batch sits; computed once a batch and shared by all blocks.

    T + N * K tokens, ordered page by page: a page's K prefix tokens (class token, registers), then its patches.
    """

    order: Tensor  # (T + N * K,) index into [patches; prefixes] that gives page order
    class_tokens: Tensor  # (N,) place of each page's class token
    document: Tensor  # (T + N * K,) document of every token
    document_of_page: Tensor  # (N,)
    page_counts: Tensor  # (B,) pages of each document
    page_lengths: Tensor  # (N,) patches of each page
    segments: dict[str, Segments]
    last: Segments  # of the last block: class tokens attend, to all

    @classmethod
    def of(cls, batch: PatchSequence, num_prefix: int, scopes: Sequence[str]) -> TokenLayout:
        device = batch.patches.device
        begins = batch.page_bounds + num_prefix * torch.arange(batch.num_pages + 1)  # in tokens
        prefix = begins[:-1, None] + torch.arange(num_prefix)  # (N, K)
        places = torch.cat([token_indices(batch, num_prefix), prefix.flatten()])
        bounds = {"page": begins, "document": begins[batch.document_bounds]}
        document = torch.repeat_interleave(torch.arange(batch.num_documents), bounds["document"].diff())
        return cls(
            order=torch.argsort(places).to(device),
            class_tokens=begins[:-1].to(device),
            document=document.to(device),
            document_of_page=batch.document_of_page.to(device),
            page_counts=batch.document_bounds.diff().to(device),
            page_lengths=batch.page_bounds.diff().to(device),
            segments={scope: Segments.of(bounds[scope], device) for scope in sorted(set(scopes))},
            last=Segments.of(bounds[scopes[-1] if scopes else "page"], device, places=begins[:-1]),
        )


class Rotation(NamedTuple):
    """How far each token's queries and keys are turned; like the layout, computed once a batch."""

    cos: Tensor  # (T + N * K, head_dim / 2)
    sin: Tensor

    def at(self, places: Tensor | None) -> Rotation:
        return self if places is None else Rotation(*(part.index_select(0, places) for part in self))


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates the pairs of channels (i, i + d / 2) of `x` (T, H, d) (RoFormer, arXiv 2104.09864)."""
    cos, sin = (part[:, None].to(x.dtype) for part in rotation)  # (T, 1, d / 2)
    one, other = x.chunk(2, -1)  # halves and not neighbours: memory is read in a row
    return torch.cat([one * cos - other * sin, one * sin + other * cos], -1)
