"""The variants by name, registered with timm: `timm.create_model("docvit_small_patch16")`."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model

from docvit.model import DocViT, DocViTConfig


def create_model(name: str, **settings: Any) -> DocViT:
    """A freshly initialised DocViT.

    Args:
        name: `docvit_{compact,tiny,small,base}_patch16`.
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
def docvit_compact_patch16(pretrained: bool = False, **settings: Any) -> DocViT:
    """Half as deep as tiny, grey pages, convolutional stem: the shape of the model in the box."""
    variant = {"embed_dim": 192, "depth": 6, "num_heads": 3, "stem": "conv", "in_chans": 1, "page_size": 256}
    return _build(settings, pretrained=pretrained, grid=(16, 16), **variant)


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
