"""Stems: how the pixels of one patch become one token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
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
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1), nn.GELU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Linear(widths[-1], dim)
        for layer in self.convs:
            if isinstance(layer, nn.Conv2d):  # no norm between them: how dark a patch is must survive
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(cast(nn.Parameter, layer.bias))

    def forward(self, patches: Tensor) -> Tensor:
        images = patches.unflatten(1, (self.in_chans, self.patch_size, self.patch_size))
        return self.proj(self.convs(images.contiguous(memory_format=torch.channels_last)).flatten(1))


class InkStem(nn.Module):
    """How much ink there is, and which way its edges run, in cells of 16 px; then a small learned map.

    Directional derivatives at two scales, rectified, averaged over cells and compressed by a square root: the first
    layer of a scattering network (arXiv 1703.08961). Edges are divided by their norm over the patch, as in histograms
    of oriented gradients (Dalal and Triggs, 2005), so that neither stroke weight nor contrast, which belong to a source
    and not to a class, comes through. Nothing in it is learned, which helps when documents are few and sources fewer.
    While training, the batch norm behind it lets the documents of a batch touch each other; afterwards nothing does.

    (T, C * P * P) -> (T, D); P is a multiple of 16.
    """

    orientations, cell = 8, 16

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__()
        if patch_size % self.cell:
            raise ValueError(f"the ink stem needs a patch size that is a multiple of {self.cell}, not {patch_size}")
        self.in_chans, self.patch_size = in_chans, patch_size
        angle = torch.arange(self.orientations) * math.pi / self.orientations
        self.register_buffer("directions", torch.stack([angle.cos(), angle.sin()], 1), persistent=False)  # (O, 2)
        features = (patch_size // self.cell) ** 2 * (1 + 2 * self.orientations)
        self.norm = nn.BatchNorm1d(features)
        self.proj = nn.Sequential(nn.Linear(features, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, patches: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(patches.device.type, enabled=False):
            features = self.describe(patches.float())
        features = features.to(patches.dtype)
        if self.training and len(features) < 2:  # one patch has no statistics of its own
            n = self.norm
            return self.proj(F.batch_norm(features, n.running_mean, n.running_var, n.weight, n.bias))
        return self.proj(self.norm(features))

    def describe(self, patches: Tensor) -> Tensor:
        """What is not learned: (T, C * P * P) -> (T, features), in float32."""
        pixels = patches.unflatten(1, (self.in_chans, self.patch_size, self.patch_size))
        ink = pixels.mean(1, keepdim=True)  # (T, 1, P, P)
        density = F.avg_pool2d(ink, self.cell)
        parts = [density, self._edges(ink, self.cell), self._edges(F.avg_pool2d(ink, 2), self.cell // 2)]
        return torch.cat([part.flatten(1) for part in parts], 1)

    def _edges(self, ink: Tensor, cell: int) -> Tensor:
        """(T, 1, S, S) -> (T, O, S / cell, S / cell)"""
        padded = F.pad(ink, (1, 1, 1, 1), mode="replicate")[:, 0]
        across = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        along = torch.einsum("oc,tcyx->toyx", self.directions.float(), torch.stack([across, down], 1))
        energy = F.avg_pool2d(along.abs(), cell).sqrt()
        return energy / (energy.square().sum((1, 2, 3), keepdim=True).sqrt() + 0.3)  # 0.3: about a faint hairline


STEMS: dict[str, Callable[[int, int, int], nn.Module]] = {"linear": LinearStem, "conv": ConvStem, "ink": InkStem}
