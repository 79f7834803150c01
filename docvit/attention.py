"""The one attention seam: every block of every variant attends through `attend`, over segments of a packed sequence."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch < 2.10
    varlen_attn = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Segments:
    """Where the segments (pages or documents) of a packed sequence begin, in the forms the kernels want.

    Built once a batch: reading boundaries back inside every block would stall the device and break compiled graphs.

    Attributes:
        bounds: (S + 1,) int32 cumulative boundaries, on the device.
        max_length: tokens in the longest segment.
        groups: (number of segments, length) for runs of equal length, shortest first.
        order: (T,) token order that sorts segments by length; None where they already are.
        inverse: (T,) the order back.
    """

    bounds: Tensor
    max_length: int
    groups: tuple[tuple[int, int], ...]
    order: Tensor | None
    inverse: Tensor | None

    @classmethod
    def of(cls, bounds: Tensor, device: torch.device | str | None = None) -> Segments:
        """From cumulative boundaries (S + 1,), best given on the CPU."""
        device = bounds.device if device is None else torch.device(device)
        bounds = bounds.cpu().long()
        lengths = bounds.diff()
        by_length = torch.argsort(lengths, stable=True)
        groups = tuple((len(list(run)), length) for length, run in groupby(lengths[by_length].tolist()))
        order = inverse = None
        if not torch.equal(by_length, torch.arange(len(lengths))):
            # token t of the sorted sequence: its segment's old beginning plus its offset inside the segment
            shift = bounds[:-1][by_length] - F.pad(lengths[by_length].cumsum(0), (1, 0))[:-1]
            order = torch.arange(int(bounds[-1])) + torch.repeat_interleave(shift, lengths[by_length])
            inverse = torch.argsort(order).to(device)
            order = order.to(device)
        longest = int(lengths.max()) if len(lengths) else 0
        return cls(bounds.to(device, torch.int32), longest, groups, order, inverse)


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Segments | Tensor) -> Tensor:
    """Softmax attention of every token over the tokens of its own segment.

    Args:
        q, k, v: (T, H, D) tokens, heads, head width.
        bounds: the segments, or their cumulative boundaries (S + 1,).

    Returns:
        (T, H, D)

    On CUDA in half precision this is `torch.nn.attention.varlen.varlen_attn`; elsewhere
    `scaled_dot_product_attention`, once for each group of segments of equal length.
    """
    segments = Segments.of(bounds, q.device) if isinstance(bounds, Tensor) else bounds
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and varlen_attn is not None:
        cu, longest = segments.bounds, segments.max_length
        out: Tensor = varlen_attn(q, k, v, cu, cu, longest, longest)  # type: ignore[assignment]
        return out
    return _attend_grouped(q, k, v, segments)


def _attend_grouped(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    if segments.order is not None:
        q, k, v = (x.index_select(0, segments.order) for x in (q, k, v))
    outputs, start = [], 0
    for count, length in segments.groups:
        stop = start + count * length
        # (count * length, H, D) -> (count, H, length, D)
        group = (x[start:stop].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*group).transpose(1, 2).flatten(0, 1))
        start = stop
    out = torch.cat(outputs) if outputs else torch.zeros_like(q)
    return out if segments.inverse is None else out.index_select(0, segments.inverse)
