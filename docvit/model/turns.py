"""How a page lies: upright, on one of its sides, or upside down."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from docvit.documents.patches import PatchSequence
from docvit.model.config import DocViTConfig
from docvit.model.stems import normalise

UPRIGHT, RIGHT, DOWN, LEFT = range(4)
"""Quarter turns clockwise by which a page was turned away from upright."""

NEIGHBOURS = 0.5, 4.0
"""Weight of what the other pages of a document say together, on average, and of how many of them at most."""


LAGS = 1, 2, 3, 4, 5, 6, 8
"""Distances in px, less than half a patch, over which profiles are compared with their mirror images."""

FARTHEST = 6.0  # deviations

HIDDEN = 128  # width of the MLP

FAINT = 0.01  # ink of a profile, of 1: there are patches with less, in which nothing is seen


class TurnHead(nn.Module):
    """How a page lies: logits (N, 4) of 0, 90, 180 and 270 degrees clockwise, from its token and its lines of text.

    Trained on the tokens of a finished model (`docvit.training.turns`), which it leaves as they are. A token says where
    on the page the ink lies. That more strokes of letters rise above a line than fall below it is too fine for it, and
    is measured.

    Attributes:
        side, down: log odds above which a page is taken to lie on its side, and one that does not upside down. Infinite
            until the head is trained: no page is turned then.
    """

    side: Tensor
    down: Tensor

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__()
        self.config = config
        self.shape = config.in_chans, config.patch_size, config.patch_size  # of a patch
        self.std = sum(config.std) / len(config.std)
        self.lags = [lag for lag in LAGS if 2 * lag < config.patch_size]
        inputs = config.embed_dim + 2 * (1 + len(self.lags))
        self.norm = nn.BatchNorm1d(inputs, affine=False)
        self.layers = nn.Sequential(
            nn.Dropout(0.2), nn.Linear(inputs, HIDDEN), nn.GELU(), nn.Dropout(0.3), nn.Linear(HIDDEN, 4)
        )
        self.register_buffer("side", torch.tensor(math.inf))
        self.register_buffer("down", torch.tensor(math.inf))

    def forget(self) -> None:
        """Turns no page until it is trained again."""
        self.side.fill_(math.inf)
        self.down.fill_(math.inf)

    def forward(self, seen: Tensor) -> Tensor:
        """Logits of pages, of which `see` gives what there is to read."""
        seen = seen.to(self.side.dtype)
        return self.layers(normalise(self.norm, seen).clamp(-FARTHEST, FARTHEST))

    @torch.no_grad()
    def see(self, pages: Tensor, batch: PatchSequence) -> Tensor:
        """Page tokens (N, D) and, beside them, how the ink of each page differs from its mirror image: (N, inputs).

        Profiles of the ink of each patch, down and across, are compared with themselves read from the other end. Of
        each number the sum over the patches of a page is divided by the root of the sum of squares.
        """
        pixels = batch.patches.float().unflatten(1, self.shape).mean(1)
        ink = (pixels.amax((1, 2), keepdim=True) - pixels) * self.std
        lengths = batch.page_bounds.diff().to(ink.device)

        def total(x: Tensor) -> Tensor:
            return torch.segment_reduce(x, "sum", lengths=lengths, unsafe=True, initial=0.0)

        found = [pages.float()]
        for profile in (ink.mean(2), ink.mean(1)):
            strength = profile.square().mean(1, keepdim=True).sqrt()
            written = (strength > FAINT).float()
            skew = self._skew(profile / (strength + FAINT)) * written
            found.append(total(skew) / (total(skew.square()) + 1e-4).sqrt())
        return torch.cat(found, 1)

    def _skew(self, profile: Tensor) -> Tensor:
        """Numbers (T, 1 + lags) that change their sign where a profile (T, P) is read from its other end."""
        found = [profile.diff(dim=1).pow(3).mean(1)]
        for lag in self.lags:
            near, far = profile[:, :-lag], profile[:, lag:]
            found.append((near * far * (near - far)).mean(1))
        return torch.stack(found, 1)

    def decide(self, logits: Tensor, document_of_page: Tensor) -> Tensor:
        """Quarter turns (N,) of pages with `logits` (N, 4), of which those of one document are judged together."""
        joint = with_neighbours(logits, document_of_page)
        side, down = log_odds(joint)
        of_sides = torch.where(joint[:, LEFT] > joint[:, RIGHT], LEFT, RIGHT)
        return torch.where(side > self.side, of_sides, torch.where(down > self.down, DOWN, UPRIGHT))


def with_neighbours(logits: Tensor, document_of_page: Tensor) -> Tensor:
    """Log evidence (N, 4): a page's own, and that of the other pages of its document, which mostly lie alike."""
    own = logits.float().log_softmax(1)
    documents = int(document_of_page.max()) + 1 if len(own) else 0
    others = own.new_zeros(documents, 4).index_add(0, document_of_page, own)[document_of_page] - own
    count = torch.bincount(document_of_page, minlength=documents)[document_of_page, None] - 1
    weight, most = NEIGHBOURS
    return own + weight * others * (most / count.clamp(min=most))


def log_odds(joint: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) that a page lies on its side, and that it is upside down rather than upright."""
    on_side = joint[:, [RIGHT, LEFT]].logsumexp(1) - joint[:, [UPRIGHT, DOWN]].logsumexp(1)
    return on_side, joint[:, DOWN] - joint[:, UPRIGHT]
