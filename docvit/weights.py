"""Weights in and out: timm ViTs become DocViTs; folders and hub repositories of safetensors + config.json."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from docvit.files import replaced, write_tensors
from docvit.model import DocViT, DocViTConfig
from docvit.positions import interpolate_1d, interpolate_2d

BUNDLED = Path(__file__).with_suffix("")  # docvit/weights/
CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ModelError(Exception):
    """A model that cannot be loaded or converted; the message says why and what to do."""


def save_pretrained(model: DocViT, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`, creating it; each file is replaced in one step."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = {n: v.to(dtype) if dtype and v.is_floating_point() else v for n, v in model.state_dict().items()}
    write_tensors(path / WEIGHTS, state, {"format": "pt"})
    with replaced(path / CONFIG) as partial:
        partial.write_text(json.dumps(model.config.as_dict(), indent=2) + "\n")


def load_pretrained(folder: str | os.PathLike[str] | None = None) -> DocViT:
    """A DocViT in eval mode, weights in float32.

    Args:
        folder: a folder written by `save_pretrained`, a Hugging Face hub id (`user/model`), or None for the model in
            the box, which needs no network.

    Raises:
        ModelError: neither a model folder nor a hub repository that can be reached, or weights that do not fit.
    """
    path = BUNDLED if folder is None else Path(folder)
    if folder is not None and not path.is_dir():
        path = _from_hub(str(folder))
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ModelError(f"{path} is not a model folder: {' and '.join(missing)} missing")
    try:
        model = DocViT(DocViTConfig.from_dict(json.loads((path / CONFIG).read_text())))
        model.load_state_dict(load_file(path / WEIGHTS))  # into float32, whatever is in the file
    except Exception as error:  # JSON, settings, safetensors and shapes each raise their own kinds
        told = " ".join(str(error).split("\n\t")[:2])  # torch lists every single weight
        advice = " If another version of docvit wrote it, train it again." if "mismatch" in told else ""
        raise ModelError(f"{path} cannot be loaded: {told}{advice}") from error
    return model.eval()


def _from_hub(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub's client and the HTTP library below it each raise their own kinds
        raise ModelError(f"{name!r} is neither a model folder nor a hub model that can be reached") from error


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


def adapt(model: DocViT, **overrides: Any) -> DocViT:
    """A copy of `model` under other settings, with every weight that still fits; tables are resampled, corners kept.

    A head of another number of classes, other class names or another width of feature begins afresh.
    """
    if overrides.get("num_classes", model.config.num_classes) != model.config.num_classes:
        overrides = {"classes": (), **overrides}  # the old names are of other classes
    config = replace(model.config, **overrides)
    result = DocViT(config)
    own = result.state_dict()
    same_head = config.num_classes == model.config.num_classes and config.classes in (model.config.classes, ())
    same_head = same_head and result.num_features == model.num_features
    for name, value in model.state_dict().items():
        if name not in own or (name.startswith("head.") and not same_head):
            continue
        own[name] = _resample(value, own[name]) if name.startswith("positions.") else value
    try:
        result.load_state_dict(own)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit the settings asked for: {error}") from error
    return result


def _resample(table: Tensor, like: Tensor) -> Tensor:
    if table.shape == like.shape or table.ndim != like.ndim or table.shape[-1] != like.shape[-1]:
        return table
    axes = [torch.linspace(0, old - 1, new) for old, new in zip(table.shape[:-1], like.shape[:-1], strict=True)]
    if len(axes) == 1:
        return interpolate_1d(table.float(), axes[0])
    row, col = (a.flatten() for a in torch.meshgrid(*axes, indexing="ij"))
    return interpolate_2d(table.float(), row, col).reshape(like.shape)


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
