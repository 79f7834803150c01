"""Initial weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def trunc_normal_(tensor: Tensor, std: float = 1.0) -> Tensor:
    """Fills `tensor` from a normal distribution cut off at -2 and 2 (not at two deviations), as timm does it.

    By the inverse of the distribution function. `torch.nn.init.trunc_normal_` draws in another way in every other
    release; here a seed gives the same weights under each.
    """
    low, high = (math.erf(bound / std / math.sqrt(2.0)) for bound in (-2.0, 2.0))
    return tensor.uniform_(low, high).erfinv_().mul_(std * math.sqrt(2.0)).clamp_(-2.0, 2.0)
