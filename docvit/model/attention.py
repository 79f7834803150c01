"""`attend`, the one attention function: softmax attention within the segments of a packed sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@cache
def varlen_kernel() -> Callable[..., Tensor] | None:
    """`varlen_attn`, imported when it is first needed: its module takes as long to import as all of torch."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch < 2.10
        return None
    return varlen_attn  # type: ignore[return-value]


class Side(NamedTuple):
    """The queries of all segments, or their keys.

    Attributes:
        bounds: (S + 1,) int32 cumulative boundaries, on the device.
        max_length: tokens in the longest segment.
        order: (T,) token order in which segments of equal lengths are neighbours; None where they already are.
        inverse: (T,) the inverse of `order`.
    """

    bounds: Tensor
    max_length: int
    order: Tensor | None
    inverse: Tensor | None

    @classmethod
    def of(cls, bounds: Tensor, sorting: Tensor, device: torch.device) -> Side:
        """From boundaries and the order of the segments (S,), both on the CPU."""
        lengths = bounds.diff()
        longest = int(lengths.max()) if len(lengths) else 0
        order = inverse = None
        if not torch.equal(sorting, torch.arange(len(lengths))):
            # token t of the sorted sequence: its segment's old beginning plus its offset inside the segment
            shift = bounds[:-1][sorting] - F.pad(lengths[sorting].cumsum(0), (1, 0))[:-1]
            order = torch.arange(int(bounds[-1])) + torch.repeat_interleave(shift, lengths[sorting])
            inverse = torch.argsort(order).to(device)
            order = order.to(device)
        return cls(bounds.to(device, torch.int32), longest, order, inverse)


@dataclass(frozen=True)
class Segments:
    """The segments (pages or documents) of a packed sequence, in the forms that the kernels need.

    Built once per batch: reading boundaries back inside every block would stall the device and break compiled graphs.

    Attributes:
        queries: the tokens that attend.
        keys: the tokens that are attended to.
        groups: (number of segments, queries, keys) for runs of equal lengths, fewest keys first.
        attending: (Q,) indices of the tokens that attend; None: every token attends.
    """

    queries: Side
    keys: Side
    groups: tuple[tuple[int, int, int], ...]
    attending: Tensor | None = None

    @classmethod
    def of(
        cls, bounds: Tensor, device: torch.device | str | None = None, *, attending: Tensor | None = None
    ) -> Segments:
        """From cumulative boundaries (S + 1,) and the ascending indices of the tokens that attend; best on the CPU."""
        device = bounds.device if device is None else torch.device(device)
        bounds = bounds.cpu().long()
        of_queries = bounds if attending is None else torch.searchsorted(attending.cpu(), bounds)
        lengths = list(zip(of_queries.diff().tolist(), bounds.diff().tolist(), strict=True))
        ranked = sorted(range(len(lengths)), key=lambda i: lengths[i][::-1])
        groups = tuple((len(list(run)), *pair) for pair, run in groupby(lengths[i] for i in ranked))
        sorting = torch.tensor(ranked, dtype=torch.long)
        keys = Side.of(bounds, sorting, device)
        if attending is None:
            return cls(keys, keys, groups)
        return cls(Side.of(of_queries, sorting, device), keys, groups, attending.to(device))


class MaskedSegments(NamedTuple):
    """The same as a mask, for `torch.export`: nothing in it depends on the values of the boundaries.

    Its memory grows with the square of the whole batch.
    """

    mask: Tensor  # (Q, T) whether query and key lie in one segment
    attending: Tensor | None = None

    @classmethod
    def of(cls, segment: Tensor, attending: Tensor | None = None) -> MaskedSegments:
        """From the segment of each token (T,) and the indices of the tokens that attend, both on the device."""
        queries = segment if attending is None else segment.index_select(0, attending)
        return cls(queries[:, None] == segment, attending)


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Segments | MaskedSegments | Tensor) -> Tensor:
    """Softmax attention of tokens over the tokens of their own segment.

    Args:
        q: (Q, H, D) tokens that attend, heads, head width; Q is T unless the segments say otherwise (`attending`).
        k, v: (T, H, D)
        bounds: the segments, or their cumulative boundaries (S + 1,).

    Returns:
        (Q, H, D)

    On CUDA in half precision this is `torch.nn.attention.varlen.varlen_attn`, where PyTorch has it and D is a multiple
    of 8 (flash attention's own condition); elsewhere `scaled_dot_product_attention`, once for each group of segments of
    equal lengths.
    """
    if isinstance(bounds, MaskedSegments):
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, T, D)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bounds.mask)[0].transpose(0, 1)
    segments = Segments.of(bounds, q.device) if isinstance(bounds, Tensor) else bounds
    half = q.dtype in (torch.bfloat16, torch.float16)
    kernel = varlen_kernel() if q.is_cuda and half and q.shape[-1] % 8 == 0 else None
    if kernel is not None:
        queries, keys = segments.queries, segments.keys
        return kernel(q, k, v, queries.bounds, keys.bounds, queries.max_length, keys.max_length)
    return _attend_grouped(q, k, v, segments)


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    queries, keys = segments.queries, segments.keys
    if keys.order is not None:
        k, v = k.index_select(0, keys.order), v.index_select(0, keys.order)
    if queries.order is not None:
        q = q.index_select(0, queries.order)
    of_queries, of_keys = ([count * pair[side] for count, *pair in segments.groups] for side in (0, 1))
    parts = zip(segments.groups, q.split(of_queries), k.split(of_keys), v.split(of_keys), strict=True)
    outputs = []
    for (count, *_), *group in parts:
        # (count * length, H, D) -> (count, H, length, D)
        heads = (x.unflatten(0, (count, len(x) // count)).transpose(1, 2) for x in group)
        outputs.append(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(0, 1))
    out = torch.cat(outputs) if outputs else torch.zeros_like(q)
    return out if queries.inverse is None else out.index_select(0, queries.inverse)
