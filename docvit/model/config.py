"""`DocViTConfig`: everything that is needed to build a DocViT and to feed it. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from docvit.documents.rendering import Rendering
from docvit.errors import SettingError

POSITIONS = ("page-independent", "continued", "sincos", "sincos2d+page", "spatial+page", "rope")

SCOPES = ("page", "document", "page-then-document:K", "alternate:K")

POOLINGS = ("mean", "max", "mean+std", "mean+std+first")

STEMS = ("linear", "conv", "ink")


def parse_scopes(scopes: str, depth: int) -> tuple[str, ...]:
    """`scopes` spelled out, one of "page" and "document" for each block.

    Raises:
        ValueError: not one of the four forms, or K outside 1..depth.
    """
    name, _, number = scopes.partition(":")
    if scopes in ("page", "document"):
        return (scopes,) * depth
    if name in ("page-then-document", "alternate") and number.isdecimal() and 1 <= int(number) <= depth:
        k = int(number)
        document = (lambda i: i >= depth - k) if name == "page-then-document" else (lambda i: i % k == k - 1)
        return tuple("document" if document(i) else "page" for i in range(depth))
    raise SettingError(f"scopes {scopes!r} of {depth} blocks: choose {', '.join(SCOPES)}, with K from 1 to {depth}")


# settings of a model that never met held-out documents: it knows everything and is never unsure
UNCALIBRATED: dict[str, Any] = {"known": (), "min_score": 0.0, "known_pixels": (), "min_score_pixels": 0.0}


@dataclass(frozen=True)
class DocViTConfig:
    """Everything that is needed to build a DocViT and to feed it; `config.json` beside the weights.

    Attributes:
        positions: name of the positional scheme: `page-independent`, `continued`, `sincos`, `sincos2d+page`,
            `spatial+page` or `rope` (`docvit.model.positions`).
        depth: number of blocks. With none, no token reads another: a page's token is its stem statistics, normalised,
            and patch tokens are not read (`reads_patches`).
        scopes: what each block sees: `page`, `document`, `page-then-document:K` (the last K blocks see the document)
            or `alternate:K` (every K-th block does).
        pooling: how page tokens become the document's feature: `mean`, `max`, `mean+std`, which is twice as wide and
            also holds how much the pages differ (statistics pooling, Snyder et al., "X-Vectors", ICASSP 2018), or
            `mean+std+first`, three times as wide, with the first page's token.
        stem: how a patch becomes a token: `linear` (as in ViT), `conv` (convolutions within the patch) or `ink` (fixed
            features of ink, colour and edges; `docvit.model.stems`).
        grid: rows and columns of the learned spatial table; other grids interpolate it.
        page_embeddings: pages that learned tables hold; longer documents interpolate them.
        num_registers: register tokens per page, after its class token (arXiv 2309.16588).
        init_values: initial value of LayerScale; None for none.
        drop_path: stochastic depth at the last block, growing linearly from 0, drawn for each document.
        words: buckets of hashed words; 0 for pixels alone (`docvit.model.words`).
        word_dim: width of the buckets' table.
        turns: page tokens say how their pages lie (`docvit.model.turns`).
        boundaries: hidden width of the head that finds where documents begin (`docvit.model.boundaries`); 0 for none.
        document_words: width of a second table, whose sum over the words of the whole document is the last part of its
            feature; 0 for none. `docvit fit` keeps a weight per bucket and class there.
        page_size, renderer, supersample, mean, std: what pages look like to this model (`docvit.Rendering`).
        known: slope and offset of the logistic function that turns the energy of a document's logits into the
            probability that the model knows its class (`docvit.training.calibrate`); empty where it cannot tell.
        min_score: a prediction is unsure where `score * known` is lower.
        known_pixels, min_score_pixels: the same for documents without words, of a model that reads words.
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
    page_embeddings: int = 64
    num_registers: int = 0
    qkv_bias: bool = True
    init_values: float | None = None
    norm_eps: float = 1e-6
    drop_rate: float = 0.0
    drop_path: float = 0.0
    words: int = 0
    word_dim: int = 48
    turns: bool = False
    boundaries: int = 0
    document_words: int = 0
    page_size: int = 224
    renderer: str = "pdfium"
    supersample: int = 2
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    known: tuple[float, ...] = ()
    min_score: float = 0.0
    known_pixels: tuple[float, ...] = ()
    min_score_pixels: float = 0.0
    classes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in ("grid", "mean", "std", "known", "known_pixels", "classes"):  # JSON has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        least = {"embed_dim": 1, "depth": 0, "num_heads": 1, "patch_size": 1, "page_embeddings": 1, "num_registers": 0}
        least |= {"words": 0, "word_dim": 1, "boundaries": 0, "document_words": 0}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise SettingError(f"{name} must be at least {number}, not {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise SettingError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.in_chans not in (1, 3):
            raise SettingError(f"in_chans must be 1 (grey) or 3 (RGB), not {self.in_chans}")
        closed = {"positional scheme": (self.positions, POSITIONS), "pooling": (self.pooling, POOLINGS)}
        for kind, (name, names) in {**closed, "stem": (self.stem, STEMS)}.items():
            if name not in names:
                raise SettingError(f"no {kind} {name!r}: choose one of {', '.join(names)}")
        if not self.reads_patches and self.stem != "ink":
            raise SettingError(f"without blocks the {self.stem} stem gives nothing about a page: take ink, or blocks")
        if self.stem == "ink" and (len(set(self.mean)) > 1 or len(set(self.std)) > 1):
            raise SettingError("the ink stem needs one mean and std for all channels, or white paper has colour")
        for numbers in (self.known, self.known_pixels):
            if len(numbers) not in (0, 2):
                raise SettingError(f"known must be a slope and an offset, or empty, not {numbers}")
        if self.document_words and not self.words:
            raise SettingError(f"document_words {self.document_words} needs words")
        if self.classes and len(self.classes) != self.num_classes:
            raise SettingError(f"{len(self.classes)} class names for {self.num_classes} classes")
        parse_scopes(self.scopes, self.depth)

    @property
    def block_scopes(self) -> tuple[str, ...]:
        """The scope of each block, "page" or "document"."""
        return parse_scopes(self.scopes, self.depth)

    @property
    def reads_patches(self) -> bool:
        """Whether patch tokens count: without blocks nothing attends to them."""
        return self.depth > 0

    @property
    def rendering(self) -> Rendering:
        """How the pages of a file become pixels for this model."""
        mode = "L" if self.in_chans == 1 else "RGB"
        return Rendering(self.renderer, self.page_size, self.patch_size, self.supersample, mode)

    def calibration(self, *, pixels: bool = False) -> tuple[tuple[float, ...], float]:
        """`known` and `min_score` for a document; for one without words (`pixels`) its own, if the model has them."""
        own = pixels and self.known_pixels
        return (self.known_pixels, self.min_score_pixels) if own else (self.known, self.min_score)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DocViTConfig:
        """Raises ValueError for a setting that does not exist (a newer or foreign config.json)."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise SettingError(f"unknown model settings: {', '.join(unknown)}")
        return cls(**values)
