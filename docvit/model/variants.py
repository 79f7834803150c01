"""The variants and the baselines: settings by name. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docvit.errors import SettingError
from docvit.model.config import DocViTConfig

if TYPE_CHECKING:
    from docvit.model.docvit import DocViT

# Three narrow blocks, the ink stem, fixed positions: for few documents and sources.
COMPACT: dict[str, Any] = {
    "patch_size": 32,
    "page_size": 256,
    "grid": (8, 8),
    "mean": (0.9,),
    "std": (0.25,),
    "embed_dim": 128,
    "depth": 3,
    "num_heads": 2,
    "stem": "ink",
    "positions": "sincos2d+page",
    "pooling": "mean+std",
    "drop_path": 0.1,
    "scopes": "page-then-document:2",
    "page_embeddings": 40,
    "turns": True,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "docvit_base_patch16": {"embed_dim": 768, "depth": 12, "num_heads": 12},  # ViT-B, ViT-S, ViT-Ti
    "docvit_compact_patch32": COMPACT,
    # without blocks: the ink stem's page statistics, pooled, and a linear map; a teacher, and the bundled model
    "docvit_linear_patch32": {**COMPACT, "depth": 0, "scopes": "page", "pooling": "mean+std+first"},
    "docvit_small_patch16": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "docvit_tiny_patch16": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    # three times as wide as compact and one more block: more than ten times its FLOPs; a teacher
    "docvit_wide_patch32": {**COMPACT, "embed_dim": 384, "depth": 4, "num_heads": 6},
}

# What is usually done instead: every page a separate image, and only then a document. One model, other settings.
BASELINES: dict[str, dict[str, Any]] = {
    "pages-mean": {"positions": "page-independent", "scopes": "page", "pooling": "mean"},
    "pages-max": {"positions": "page-independent", "scopes": "page", "pooling": "max"},
    # the pages' tokens concatenated, and another transformer block over all of them
    "pages-concat": {"positions": "page-independent", "scopes": "page-then-document:1", "pooling": "mean"},
}


def list_variants() -> list[str]:
    """The names that `create_model` knows."""
    return list(VARIANTS)


def create_model(name: str, *, baseline: str | None = None, **settings: Any) -> DocViT:
    """A freshly initialised DocViT.

    Args:
        name: `docvit_{compact,linear,wide}_patch32`, `docvit_{tiny,small,base}_patch16`.
        baseline: a page-independent baseline (`BASELINES`): `pages-mean`, `pages-max` or `pages-concat`.
        settings: any field of `DocViTConfig`, such as num_classes, positions, scopes.

    Raises:
        ValueError: no such variant, baseline or setting, or a setting that contradicts the baseline.
    """
    from docvit.model.docvit import DocViT

    if baseline is not None:
        settings = with_baseline(baseline, settings)
    if name not in VARIANTS:
        raise SettingError(f"no variant {name!r}: choose one of {', '.join(VARIANTS)}")
    return DocViT(DocViTConfig.from_dict({**VARIANTS[name], **settings}))


def with_baseline(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` of a model together with those of the baseline `name`.

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
    """The name of the baseline that `settings` contain, or None."""
    return next((name for name, own in BASELINES.items() if own.items() <= settings.items()), None)
