"""Importing this module makes the variants known to timm: `timm.create_model("docvit_small_patch16")`."""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from docvit.model.docvit import DocViT
from docvit.model.variants import VARIANTS, create_model

OF_TIMM = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")  # settings that timm hands to every model


def _register(name: str) -> None:
    def build(pretrained: bool = False, **settings: Any) -> DocViT:
        if pretrained:
            raise ValueError("variants have no pretrained weights: use DocViT.from_pretrained() or DocViT.from_timm")
        return create_model(name, **{key: value for key, value in settings.items() if key not in OF_TIMM})

    build.__name__ = name
    register_model(build)


for variant in VARIANTS:
    _register(variant)
