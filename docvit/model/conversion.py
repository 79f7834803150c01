"""timm's vision transformers as DocViTs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.pretrained import ModelError, adapt


def from_timm(model: str | nn.Module, *, pretrained: bool = False, **overrides: Any) -> DocViT:
    """A timm vision transformer as a DocViT: the same numbers for a one-page document without blank patches left out.

    Args:
        model: a name such as `vit_small_patch16_224`, or an instance.
        pretrained: load timm's weights (for a name).
        overrides: settings of `DocViTConfig` to change; another `grid` or `max_pages` resamples the tables, another
            `num_classes` gives a fresh head.

    The class token's position goes into the class token. The page embedding of the first page is zero; those of the
    others begin small and random, so that training can tell pages apart. Other `positions` than `spatial+page` and
    `page-independent` have no place for timm's table: all other weights are taken, but the numbers are no longer timm's
    until the model is trained.

    Raises:
        ModelError: no such name, weights that cannot be fetched, an architecture without a class token, or with parts
            that DocViT does not have.
    """
    source = _checked(_create_timm(model, pretrained=pretrained) if isinstance(model, str) else model)
    try:
        config = _timm_config(source)
    except ValueError as error:
        raise ModelError(f"{type(source).__name__} cannot be a DocViT: {error}") from error
    docvit = DocViT(config)
    own = docvit.state_dict()
    page = own["positions.page"]
    page[0] = 0
    state = {"positions.page": page, **_timm_state(source)}
    differing = sorted(own.keys() ^ state.keys()) + [n for n in own if n in state and own[n].shape != state[n].shape]
    if differing:
        raise ModelError(f"{type(source).__name__} and DocViT differ in their parts: {', '.join(differing[:5])}")
    docvit.load_state_dict(state)
    return adapt(docvit, **overrides).train(source.training)


def _create_timm(name: str, *, pretrained: bool) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # an unknown name, or a download that failed: each of its own kind
        raise ModelError(f"timm has no {name!r} that can be created: {error}") from error
    return model


def _checked(source: nn.Module) -> VisionTransformer:
    """`source` itself, unless DocViT lacks a part of it or would compute other numbers from weights of the same names.

    Raises:
        ModelError: says which.
    """
    if not isinstance(source, VisionTransformer):
        raise ModelError(f"{type(source).__name__} is not a timm VisionTransformer")
    if source.cls_token is None or source.global_pool != "token":
        raise ModelError("DocViT pools class tokens: this model has none, or pools in another way")
    if source.num_prefix_tokens != 1 + source.num_reg_tokens:
        raise ModelError("models with a distillation token are not supported")
    if source.pos_embed is None:
        raise ModelError("DocViT has learned positions, this model has none")
    if not isinstance(source.norm, nn.LayerNorm):
        raise ModelError("DocViT normalises its class tokens last (`norm`), this model does not")
    patches = source.patch_embed
    if type(patches) is not PatchEmbed or len(set(patches.patch_size)) > 1:
        raise ModelError(f"DocViT cuts pages into square patches: it has no {type(patches).__name__} like this model's")
    x = torch.linspace(-4, 4, 9)
    for block in source.blocks:
        if type(block) is not Block:
            raise ModelError(f"DocViT has plain blocks, not {type(block).__name__}")
        if not torch.allclose(block.mlp.act(x.clone()), F.gelu(x)):
            raise ModelError(f"DocViT has exact GELU, not {type(block.mlp.act).__name__}")
    return source


def _timm_config(source: VisionTransformer) -> DocViTConfig:
    block, patches = source.blocks[0], source.patch_embed
    pretrained = getattr(source, "pretrained_cfg", {}) or {}
    channels = patches.proj.in_channels
    return DocViTConfig(
        embed_dim=source.embed_dim,
        depth=len(source.blocks),
        num_heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / source.embed_dim,
        patch_size=patches.patch_size[0],
        in_chans=channels,
        num_classes=source.num_classes,
        grid=tuple(patches.grid_size),
        num_registers=source.num_reg_tokens,
        qkv_bias=block.attn.qkv.bias is not None,
        init_values=1e-5 if hasattr(block.ls1, "gamma") else None,
        norm_eps=source.norm.eps,
        page_size=max(patches.img_size),
        mean=_per_channel(pretrained.get("mean", (0.5,)), channels),
        std=_per_channel(pretrained.get("std", (0.5,)), channels),
    )


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """timm's normalisation is always RGB's, also of a model for grey pages."""
    return tuple(values) if len(values) in (1, channels) else (sum(values) / len(values),)


def _timm_state(source: VisionTransformer) -> dict[str, Tensor]:
    """timm's weights under DocViT's names and shapes."""
    state = {k: v.detach().clone() for k, v in source.state_dict().items()}
    table = state.pop("pos_embed")[0]  # (prefix + rows * cols, D)
    state["cls_token"] = state["cls_token"][0]
    if "reg_token" in state:
        state["reg_token"] = state["reg_token"][0]
    if not source.no_embed_class:  # prefix tokens have positions of their own: constants, so they move into the tokens
        state["cls_token"] += table[:1]
        if "reg_token" in state:
            state["reg_token"] += table[1 : source.num_prefix_tokens]
        table = table[source.num_prefix_tokens :]
    state["positions.spatial"] = table.unflatten(0, tuple(source.patch_embed.grid_size))
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flatten(1)
    return state
