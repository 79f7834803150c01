"""Heads: features become logits."""

from __future__ import annotations

from torch import nn

from docvit.model.init import trunc_normal_


def create_head(dim: int, num_classes: int) -> nn.Module:
    if not num_classes:
        return nn.Identity()
    head = nn.Linear(dim, num_classes)
    trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)
    return head
