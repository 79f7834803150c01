"""Stems: how the pixels of one patch become one token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import lecun_normal_
from torch import Tensor, nn

from docvit.documents.patches import PatchSequence
from docvit.errors import SettingError
from docvit.model import ink

# Deviations. A figure that hardly varies in training, such as the shape of pages where all are alike, must not drown
# all others on a page where it does.
FARTHEST = 10.0


class Stem(nn.Module):
    """Base: patches (T, C * P * P) to tokens (T, D), and what else there is to say about a page."""

    def embed(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens of the patches (T, D), and what is added to each page's class token (N, D), or None.

        Args:
            page_lengths: (N,) patches of each page, on the batch's device.
        """
        return self(batch.patches), None


class LinearStem(Stem):
    """One linear map of the patch's pixels, as in ViT (timm's `patch_embed.proj`, flattened).

    (T, C * P * P) -> (T, D)
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_chans * patch_size**2, dim)
        lecun_normal_(self.proj.weight)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class ConvStem(Stem):
    """Strided convolutions within the patch, halving its side down to one ("Early Convolutions", arXiv 2106.14881).

    Strokes and edges are found wherever in the patch they lie, which a linear map has to learn place by place. Since
    no convolution leaves its patch, packed sequences with patches left out need nothing special.

    (T, C * P * P) -> (T, D); P is a power of two.
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__()
        halvings = int(math.log2(patch_size))
        if 2**halvings != patch_size:
            raise SettingError(f"the convolutional stem needs a patch size that is a power of two, not {patch_size}")
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


class InkStem(Stem):
    """How much ink there is, how colourful, and how its edges run, in cells of 16 px; then a small learned map.

    Directional derivatives at three scales, rectified, averaged over cells and compressed by a square root: the first
    layer of a scattering network (arXiv 1203.1513). For a patch's token those of the two finer scales are divided by
    their norm over the patch, as in histograms of oriented gradients (Dalal and Triggs, 2005), so that neither stroke
    weight nor contrast, which belong to a source and not to a class, comes through. A page's class token is told the
    mean and the standard deviation over the page's inked cells (averages attention can take itself, spreads it can
    not), a second layer of scattering, divided by the first (how edges come and go: letters, words, lines), the
    autocorrelation of edges from row to row, which has a peak at the distance of its lines, and the page's layout: its
    shape, the bounds of what is on it, how much is where from top to bottom and from left to right, and how high rows
    of text, staves or tables are and the gaps between them. Where patches are left out in training, it is the layout of
    what is left.
    Nothing but a small MLP, a linear map and the batch norms before them is learned, which helps when documents are few
    and sources fewer.
    While training, the batch norms let the documents of a batch touch each other; afterwards nothing does.

    (T, C * P * P) -> (T, D); P is a multiple of 16.
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__()
        if patch_size % ink.CELL:
            raise SettingError(f"the ink stem needs a patch size that is a multiple of {ink.CELL}, not {patch_size}")
        self.in_chans, self.patch_size = in_chans, patch_size
        features, statistics = ink.sizes(in_chans, patch_size)
        self.norm = nn.BatchNorm1d(features)
        self.proj = nn.Sequential(nn.Linear(features, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.page_norm = nn.BatchNorm1d(statistics)
        self.page_proj = nn.Linear(statistics, dim)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(_normalise(self.norm, self.describe(patches).to(patches.dtype)))

    def embed(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, statistics = (x.to(batch.patches.dtype) for x in self.observe(batch, page_lengths))
        statistics = _normalise(self.page_norm, statistics).clamp(-FARTHEST, FARTHEST)
        return self.proj(_normalise(self.norm, features)), self.tell(statistics, batch)

    @torch.no_grad()
    def observe(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What tokens and class tokens are told of, before anything is learned: (T, features) and (N, statistics)."""
        with torch.autocast(batch.patches.device.type, enabled=False):
            measured = self.measure(batch.patches.float())
            return ink.compare(measured), ink.gather(measured, batch, page_lengths)

    def tell(self, statistics: Tensor, batch: PatchSequence) -> Tensor:
        """What is added to class tokens (N, D) by normalised statistics of their pages (N, statistics)."""
        return self.page_proj(statistics)

    @torch.no_grad()
    def describe(self, patches: Tensor) -> Tensor:
        """What a token is made of before anything is learned: (T, C * P * P) -> (T, features), in float32."""
        with torch.autocast(patches.device.type, enabled=False):
            return ink.compare(self.measure(patches.float()))

    def measure(self, patches: Tensor) -> ink.InkMaps:
        """What `docvit.ink` measures of patches (T, C * P * P) in float32."""
        return ink.measure(patches.unflatten(1, (self.in_chans, self.patch_size, self.patch_size)))


def _normalise(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    if norm.training and len(rows) < 2:  # one row has no statistics of its own
        # copies: the backward pass reads them, and another forward may have moved the statistics by then
        mean, variance = cast(Tensor, norm.running_mean).clone(), cast(Tensor, norm.running_var).clone()
        return F.batch_norm(rows, mean, variance, norm.weight, norm.bias)
    return norm(rows)


STEMS: dict[str, Callable[[int, int, int], Stem]] = {"linear": LinearStem, "conv": ConvStem, "ink": InkStem}
