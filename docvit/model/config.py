"""`DocViTConfig`: everything that is needed to build a DocViT and to feed it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from docvit.documents.rendering import Rendering
from docvit.errors import SettingError
from docvit.model.pooling import POOLINGS
from docvit.model.stems import STEMS
from docvit.model.tokens import parse_scopes


@dataclass(frozen=True)
class DocViTConfig:
    """Everything that is needed to build a DocViT and to feed it; `config.json` beside the weights.

    Attributes:
        positions: name of the positional scheme: `page-independent`, `continued`, `sincos`, `sincos2d+page`,
            `spatial+page` or `rope` (`docvit.positions`).
        depth: blocks; with none, page tokens are what the stem tells class tokens, normalised, and their patches do not
            count.
        scopes: what each block sees: `page`, `document`, `page-then-document:K` (the last K blocks see the document)
            or `alternate:K` (every K-th block does).
        pooling: how page tokens become the document's feature: `mean`, `max`, `mean+std`, which is twice as wide and
            also says how much the pages differ (statistics pooling, Snyder et al., "X-Vectors", ICASSP 2018), or
            `mean+std+first`, three times as wide, with the first page's token.
        stem: how a patch becomes a token: `linear` (as in ViT), `conv` (convolutions within the patch) or `ink` (how
            much ink there is, how colourful, and which way its edges run; `docvit.stems`).
        grid: rows and columns of the learned spatial table; other grids interpolate it.
        max_pages: pages that learned tables hold; longer documents interpolate them.
        num_registers: register tokens a page, after its class token (arXiv 2309.16588).
        init_values: initial value of LayerScale; None for none.
        drop_path: stochastic depth at the last block, growing linearly from 0, drawn for each document.
        page_size, renderer, supersample, mean, std: what pages look like to this model (`docvit.pages.Rendering`).
        classes: names of the classes, in the order of the logits; empty if unknown.
    """

    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    patch_size: int = 16
    in_chans: int = 3
    num_classes: int = 1000
    positions: str = "spatial+page"
    scopes: str = "document"
    pooling: str = "mean"
    stem: str = "linear"
    grid: tuple[int, int] = (14, 14)
    max_pages: int = 64
    num_registers: int = 0
    qkv_bias: bool = True
    init_values: float | None = None
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    drop_path: float = 0.0
    page_size: int = 224
    renderer: str = "pdfium"
    supersample: int = 2
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    classes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("grid", "mean", "std", "classes"):  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        least = {"embed_dim": 1, "depth": 0, "num_heads": 1, "patch_size": 1, "max_pages": 1, "num_registers": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise SettingError(f"{name} must be at least {number}, not {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise SettingError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.in_chans not in (1, 3):
            raise SettingError(f"in_chans must be 1 (grey) or 3 (RGB), not {self.in_chans}")
        if self.pooling not in POOLINGS:
            raise SettingError(f"no pooling {self.pooling!r}: choose one of {', '.join(POOLINGS)}")
        if self.stem not in STEMS:
            raise SettingError(f"no stem {self.stem!r}: choose one of {', '.join(STEMS)}")
        if self.stem == "ink" and (len(set(self.mean)) > 1 or len(set(self.std)) > 1):
            raise SettingError(
                "the ink stem wants one mean and std for all channels, or white paper would look colourful"
            )
        if self.classes and len(self.classes) != self.num_classes:
            raise SettingError(f"{len(self.classes)} class names for {self.num_classes} classes")
        parse_scopes(self.scopes, self.depth)

    @property
    def rendering(self) -> Rendering:
        """How the pages of a file become pixels for this model."""
        mode = "L" if self.in_chans == 1 else "RGB"
        return Rendering(self.renderer, self.page_size, self.patch_size, self.supersample, mode)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DocViTConfig:
        """Raises ValueError for a setting that does not exist (a newer or foreign config.json)."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise SettingError(f"unknown model settings: {', '.join(unknown)}")
        return cls(**values)
