"""The variants by name, registered with timm: `timm.create_model("docvit_small_patch16")`; and the baselines."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model

from docvit.errors import SettingError
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT

# What is usually done instead: every page a separate image, and only then a document. One model, other settings.
BASELINES: dict[str, dict[str, Any]] = {
    "pages-mean": {"positions": "page-independent", "scopes": "page", "pooling": "mean"},
    "pages-max": {"positions": "page-independent", "scopes": "page", "pooling": "max"},
    # the pages' tokens concatenated, and another transformer block over all of them
    "pages-concat": {"positions": "page-independent", "scopes": "page-then-document:1", "pooling": "mean"},
}


def list_variants() -> list[str]:
    """The names that `create_model` knows."""
    return timm.list_models("docvit_*")


def create_model(name: str, *, baseline: str | None = None, **settings: Any) -> DocViT:
    """A freshly initialised DocViT.

    Args:
        name: `docvit_{compact,linear,wide}_patch32`, `docvit_{tiny,small,base}_patch16`.
        baseline: a page-independent baseline (`BASELINES`): `pages-mean`, `pages-max` or `pages-concat`.
        settings: any field of `DocViTConfig`, such as num_classes, positions, scopes.

    Raises:
        ValueError: no such variant, baseline or setting, or a setting that contradicts the baseline.
    """
    if baseline is not None:
        settings = with_baseline(baseline, settings)
    names = list_variants()
    if name not in names:
        raise SettingError(f"no variant {name!r}: choose one of {', '.join(names)}")
    model: DocViT = timm.create_model(name, **settings)
    return model


def with_baseline(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` of a model, and those that the baseline called `name` consists of.

    Raises:
        ValueError: no such baseline, or settings that contradict it.
    """
    if name not in BASELINES:
        raise SettingError(f"no baseline {name!r}: choose one of {', '.join(BASELINES)}")
    own = BASELINES[name]
    against = [f"{k} {settings[k]!r} (it has {v!r})" for k, v in own.items() if settings.get(k, v) != v]
    if against:
        raise SettingError(f"baseline {name!r} is contradicted by {', '.join(against)}: leave one of them out")
    return {**settings, **own}


def baseline_of(settings: dict[str, Any]) -> str | None:
    """The name of the baseline that `settings` hold, if they hold one."""
    return next((name for name, own in BASELINES.items() if own.items() <= settings.items()), None)


def _build(settings: dict[str, Any], *, pretrained: bool, **variant: Any) -> DocViT:
    if pretrained:
        raise SettingError(
            "variants have no pretrained weights: use DocViT.from_pretrained() or DocViT.from_timm(name)"
        )
    hub = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # timm hands these to every model
    return DocViT(DocViTConfig.from_dict({**variant, **{k: v for k, v in settings.items() if k not in hub}}))


@register_model
def docvit_compact_patch32(pretrained: bool = False, **settings: Any) -> DocViT:
    """Three narrow blocks, the ink stem, fixed positions: for few documents and sources; in the box."""
    pages = {"patch_size": 32, "page_size": 256, "grid": (8, 8), "mean": (0.9,), "std": (0.25,)}
    shape = {
        "embed_dim": 128,
        "depth": 3,
        "num_heads": 2,
        "stem": "ink",
        "positions": "sincos2d+page",
        "pooling": "mean+std",
        "drop_path": 0.1,
        "scopes": "page-then-document:2",
        "max_pages": 40,
    }
    return _build(settings, pretrained=pretrained, **pages, **shape)


@register_model
def docvit_linear_patch32(pretrained: bool = False, **settings: Any) -> DocViT:
    """The compact variant without blocks: what the ink stem tells of pages, pooled, and a linear map. A teacher."""
    shape = {"depth": 0, "scopes": "page", "pooling": "mean+std+first"}
    return docvit_compact_patch32(pretrained, **{**shape, **settings})


@register_model
def docvit_wide_patch32(pretrained: bool = False, **settings: Any) -> DocViT:
    """The compact variant at three times its width, with one more block: more than ten times its FLOPs. A teacher."""
    shape = {"embed_dim": 384, "depth": 4, "num_heads": 6}
    return docvit_compact_patch32(pretrained, **{**shape, **settings})


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
