"""How a page lies: upright, on one of its sides, or upside down."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

UPRIGHT, RIGHT, DOWN, LEFT = range(4)
"""Quarter turns clockwise by which a page was turned away from upright."""

NEIGHBOURS = 0.5, 4.0
"""Weight of what the other pages of a document say together, on average, and of how many of them at most."""


class TurnHead(nn.Module):
    """How a page lies, from its token (N, D): logits (N, 4) of 0, 90, 180 and 270 degrees clockwise.

    Trained on the tokens of a finished model (`docvit.training.turns`), which it leaves as they are.

    Attributes:
        side, down: log odds above which a page is taken to lie on its side, and one that does not upside down. Infinite
            until the head is trained: no page is turned then.
    """

    side: Tensor
    down: Tensor

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.3), nn.Linear(hidden, 4))
        self.register_buffer("side", torch.tensor(math.inf))
        self.register_buffer("down", torch.tensor(math.inf))

    def forget(self) -> None:
        """Turns no page until it is trained again."""
        self.side.fill_(math.inf)
        self.down.fill_(math.inf)

    def forward(self, pages: Tensor) -> Tensor:
        return self.layers(pages)

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
