"""The variants by name, registered with timm: `timm.create_model("docvit_small_patch16")`."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model

from docvit.model import DocViT, DocViTConfig


def create_model(name: str, **settings: Any) -> DocViT:
    """A freshly initialised DocViT.

    Args:
        name: `docvit_compact_patch32`, `docvit_{tiny,small,base}_patch16`.
        settings: any field of `DocViTConfig`, such as num_classes, positions, scopes.

    Raises:
        ValueError: no such variant or setting.
    """
    names = timm.list_models("docvit_*")
    if name not in names:
        raise ValueError(f"no variant {name!r}: choose one of {', '.join(names)}")
    model: DocViT = timm.create_model(name, **settings)
    return model


def _build(settings: dict[str, Any], *, pretrained: bool, **variant: Any) -> DocViT:
    if pretrained:
        raise ValueError("variants have no pretrained weights: use DocViT.from_pretrained() or DocViT.from_timm(name)")
    hub = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # timm hands these to every model
    return DocViT(DocViTConfig.from_dict({**variant, **{k: v for k, v in settings.items() if k not in hub}}))


@register_model
def docvit_compact_patch32(pretrained: bool = False, **settings: Any) -> DocViT:
    """Three narrow blocks on grey pages, the ink stem: for few documents and sources; the model in the box."""
    pages = {"patch_size": 32, "in_chans": 1, "page_size": 256, "grid": (8, 8), "mean": (0.9,), "std": (0.25,)}
    shape = {
        "embed_dim": 128,
        "depth": 3,
        "num_heads": 2,
        "stem": "ink",
        "drop_path": 0.1,
        "scopes": "page-then-document:2",
        "max_pages": 40,
    }
    return _build(settings, pretrained=pretrained, **pages, **shape)


@register_model
def docvit_tiny_patch16(pretrained: bool = False, **settings: Any) -> DocViT:
    """ViT-Ti's width, depth and heads."""
    return _build(settings, pretrained=pretrained, embed_dim=192, depth=12, num_heads=3)


@register_model
def docvit_small_patch16(pretrained: bool = False, **settings: Any) -> DocViT:
    """ViT-S's width, depth and heads."""
    return _build(settings, pretrained=pretrained, embed_dim=384, depth=12, num_heads=6)


@register_model
def docvit_base_patch16(pretrained: bool = False, **settings: Any) -> DocViT:
    """ViT-B's width, depth and heads."""
    return _build(settings, pretrained=pretrained, embed_dim=768, depth=12, num_heads=12)
