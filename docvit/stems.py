"""Stems: how the pixels of one patch become one token."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from timm.layers import lecun_normal_
from torch import Tensor, nn


class LinearStem(nn.Module):
    """One linear map of the patch's pixels, as in ViT (timm's `patch_embed.proj`, flattened).

    (T, C * P * P) -> (T, D)
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_chans * patch_size**2, dim)
        lecun_normal_(self.proj.weight)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class ConvStem(nn.Module):
    """Strided convolutions within the patch, halving its side down to one ("Early Convolutions", arXiv 2106.14881).

    Strokes and edges are found wherever in the patch they lie, which a linear map has to learn place by place. Since
    no convolution leaves its patch, packed sequences with patches left out need nothing special.

    (T, C * P * P) -> (T, D); P is a power of two.
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__()
        halvings = int(math.log2(patch_size))
        if 2**halvings != patch_size:
            raise ValueError(f"the convolutional stem needs a patch size that is a power of two, not {patch_size}")
        self.in_chans, self.patch_size = in_chans, patch_size
        widths = [in_chans] + [max(16, dim // 2 ** (halvings - 1 - i)) for i in range(halvings)]
        layers: list[nn.Module] = []
        for i in range(halvings):
            layers += [
                nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1),
                nn.GroupNorm(1, widths[i + 1]),
                nn.GELU(),
            ]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Linear(widths[-1], dim)

    def forward(self, patches: Tensor) -> Tensor:
        images = patches.unflatten(1, (self.in_chans, self.patch_size, self.patch_size))
        return self.proj(self.convs(images.contiguous(memory_format=torch.channels_last)).flatten(1))


STEMS: dict[str, Callable[[int, int, int], nn.Module]] = {"linear": LinearStem, "conv": ConvStem}
