"""timm's vision transformers as the settings and weights of a DocViT. timm is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.model.config import DocViTConfig
from docvit.model.errors import ModelError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class Converted(NamedTuple):
    """A timm model's class, settings and mode, and its weights under DocViT's names (all but the page embedding)."""

    kind: str
    config: DocViTConfig
    state: dict[str, Tensor]
    training: bool


def convert_timm(model: str | nn.Module, *, pretrained: bool = False) -> Converted:
    """Converts a timm vision transformer, by name or instance; see `DocViT.from_timm`.

    Raises:
        ModelError: no such name, weights that cannot be fetched, or parts that DocViT does not have.
    """
    source = _checked(_create_timm(model, pretrained=pretrained) if isinstance(model, str) else model)
    kind = type(source).__name__
    try:
        return Converted(kind, _timm_config(source), _timm_state(source), source.training)
    except ValueError as error:
        raise ModelError(f"{kind} cannot be a DocViT: {error}") from error


def _create_timm(name: str, *, pretrained: bool) -> nn.Module:
    import timm

    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # an unknown name, or a download that failed: each of its own kind
        raise ModelError(f"timm has no {name!r} that can be created: {error}") from error
    return model


def _checked(source: nn.Module) -> VisionTransformer:
    """`source` itself, unless DocViT lacks a part of it or would compute other logits from weights of the same names.

    Raises:
        ModelError: names that part.
    """
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

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
