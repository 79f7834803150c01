"""Initial weights: timm's truncated normal to the bit, and the spread that each layer is meant to begin with."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers import lecun_normal_
from timm.layers import trunc_normal_ as timms
from torch import nn

from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.init import trunc_normal_
from docvit.model.stems import LinearStem

WIDE = {"embed_dim": 256, "depth": 1, "num_heads": 4, "patch_size": 16, "num_classes": 100, "num_registers": 4}


@pytest.mark.parametrize("std", [0.02, 0.3, 1.0, 3.0])
def test_the_truncated_normal_is_timms(std):
    tensors = []
    for fill in (trunc_normal_, timms):
        torch.manual_seed(0)
        tensors.append(fill(torch.empty(100, 99), std=std))
    assert torch.equal(*tensors)


def test_the_linear_stem_begins_as_lecun_has_it():
    torch.manual_seed(0)
    stem = LinearStem(3, 16, 64)
    torch.manual_seed(0)
    like = nn.Linear(3 * 16**2, 64)
    lecun_normal_(like.weight)
    assert torch.equal(stem.proj.weight, like.weight)


@pytest.mark.parametrize("stem", ["linear", "conv", "ink"])
def test_every_layer_of_a_model_begins_with_its_own_spread(stem):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**WIDE, stem=stem))
    block, positions = model.blocks[0], model.positions
    expected = {  # Glorot and Bengio for blocks
        block.attn.qkv.weight: math.sqrt(2 / (256 + 768)),
        block.attn.proj.weight: math.sqrt(2 / (256 + 256)),
        block.mlp.fc1.weight: math.sqrt(2 / (256 + 1024)),
        **dict.fromkeys((model.cls_token, model.reg_token, model.head.weight), 0.02),
        **dict.fromkeys((positions.spatial, positions.page), 0.02),
    }
    if stem == "linear":
        expected[model.patch_embed.proj.weight] = 1 / math.sqrt(3 * 16**2)
    if stem == "conv":  # He et al.
        convs = [layer for layer in model.patch_embed.convs if isinstance(layer, nn.Conv2d)]
        expected |= {conv.weight: math.sqrt(2 / (9 * conv.in_channels)) for conv in convs}
        assert all((conv.bias == 0).all() for conv in convs)
    for weight, std in expected.items():
        assert weight.std().item() == pytest.approx(std, rel=0.1 if weight.numel() > 1000 else 0.2)
    assert all((layer.bias == 0).all() for layer in (block.attn.qkv, block.mlp.fc2, model.head))
