"""Stems: how the pixels of one patch become one token."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.documents.patches import PatchSequence
from docvit.errors import SettingError
from docvit.model import ink
from docvit.model.init import trunc_normal_

# Deviations. A statistic that hardly varies in training, such as the shape of pages where all have one, must not drown
# all others on a page where it does.
FARTHEST = 10.0


class Stem(nn.Module):
    """Base: patches (T, C * P * P) to tokens (T, D); a stem may also add page statistics to class tokens."""

    def embed(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens of the patches (T, D), and page statistics (N, D) to be added to the pages' class tokens, or None.

        Args:
            page_lengths: (N,) patches of each page, on the batch's device.
        """
        return self(batch.patches), None

    def freeze_tokens(self) -> None:
        """Freezes what patch tokens alone are made with, for a model that does not read them."""
        self.requires_grad_(False)


class LinearStem(Stem):
    """One linear map of the patch's pixels, as in ViT (timm's `patch_embed.proj`, flattened).

    (T, C * P * P) -> (T, D)
    """

    def __init__(self, in_chans: int, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_chans * patch_size**2, dim)
        fan_in, cut_off = in_chans * patch_size**2, 0.87962566103423978  # deviation of a normal cut off at two
        with torch.no_grad():  # LeCun's
            trunc_normal_(self.proj.weight).mul_(math.sqrt(1 / fan_in) / cut_off)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(patches)


class ConvStem(Stem):
    """Strided convolutions within the patch, halving its side down to one ("Early Convolutions", arXiv 2106.14881).

    Strokes and edges are found wherever in the patch they lie, which a linear map has to learn pixel by pixel. Since
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
    """Fixed features of ink, colour and edges in cells of 16 px (`docvit.model.ink`), then a small learned map.

    Directional derivatives at three scales, rectified, averaged over cells and compressed by a square root: the first
    layer of a scattering network (arXiv 1203.1513). For a patch's token those of the two finer scales are divided by
    their norm over the patch, as in histograms of oriented gradients (Dalal and Triggs, 2005), so that neither stroke
    weight nor contrast, which belong to a source and not to a class, comes through.

    A page's statistics are added to its class token: the mean and the standard deviation over the page's inked cells
    (averages attention can take itself, spreads it can not); a second layer of scattering, divided by the first (how
    edges come and go: letters, words, lines); the autocorrelation of edges from row to row, which has a peak at the
    distance of text lines; and the layout of the page: its shape, the bounds of its content, profiles from top to
    bottom and from left to right, the heights of rows of text, staves or tables and of the gaps between them. Where
    patches are left out in training, it is the layout of those that remain.

    Learned are only a small MLP, a linear map and the batch norms before them, which helps when documents are few and
    sources fewer. While training, the batch norms let the documents of a batch influence each other; afterwards
    documents are independent.

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
        return self.proj(normalise(self.norm, self.describe(patches).to(patches.dtype)))

    def embed(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        features, statistics = (x.to(batch.patches.dtype) for x in self.observe(batch, page_lengths))
        statistics = normalise(self.page_norm, statistics).clamp(-FARTHEST, FARTHEST)
        return self.proj(normalise(self.norm, features)), self.project_pages(statistics, batch)

    def freeze_tokens(self) -> None:
        self.norm.requires_grad_(False)
        self.proj.requires_grad_(False)

    @torch.no_grad()
    def observe(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Fixed features of patches (T, features) and statistics of pages (N, statistics), in float32."""
        with torch.autocast(batch.patches.device.type, enabled=False):
            maps = self.measure(batch.patches.float())
            return ink.patch_features(maps), ink.page_statistics(maps, batch, page_lengths)

    def project_pages(self, statistics: Tensor, batch: PatchSequence) -> Tensor:
        """Normalised statistics of the pages (N, statistics) -> what is added to their class tokens (N, D)."""
        return self.page_proj(statistics)

    @torch.no_grad()
    def describe(self, patches: Tensor) -> Tensor:
        """Fixed features of patches: (T, C * P * P) -> (T, features), in float32."""
        with torch.autocast(patches.device.type, enabled=False):
            return ink.patch_features(self.measure(patches.float()))

    def measure(self, patches: Tensor) -> ink.InkMaps:
        """The ink maps of patches (T, C * P * P) in float32."""
        return ink.measure(patches.unflatten(1, (self.in_chans, self.patch_size, self.patch_size)))


def normalise(norm: nn.BatchNorm1d, rows: Tensor) -> Tensor:
    """`norm` of rows (R, F), which in training may also be a single one."""
    if norm.training and len(rows) < 2:  # one row has no statistics of its own
        # copies: the backward pass reads them, and another forward may have moved the statistics by then
        mean, variance = cast(Tensor, norm.running_mean).clone(), cast(Tensor, norm.running_var).clone()
        return F.batch_norm(rows, mean, variance, norm.weight, norm.bias)
    return norm(rows)


STEM_TYPES: dict[str, Callable[[int, int, int], Stem]] = {"linear": LinearStem, "conv": ConvStem, "ink": InkStem}
