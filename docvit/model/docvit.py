"""DocViT: one vision transformer over the packed patches of whole documents."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, trunc_normal_
from torch import Tensor, nn

from docvit.documents.patches import PatchSequence, pack
from docvit.errors import SettingError
from docvit.model.attention import Segments, attend
from docvit.model.config import DocViTConfig
from docvit.model.heads import create_head
from docvit.model.pooling import LEAST_SPREAD, POOLINGS, pool
from docvit.model.positions import Positions, create_positions
from docvit.model.stems import STEMS, InkStem
from docvit.model.tokens import Rotation, TokenLayout, parse_scopes, rotate

States = dict[str, Tensor]

CACHED_ROWS = 768


class Features(NamedTuple):
    """What `forward_features` gives: normalised page tokens (N, D) and the documents they belong to."""

    pages: Tensor
    document_of_page: Tensor  # (N,)
    page_counts: Tensor  # (B,)


class Attention(nn.Module):
    """Multi-head self-attention over the segments it is handed; parameters named as in timm."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, segments: Segments, rotation: Rotation | None = None) -> Tensor:
        """Tokens (T, D) to (T, D), or to (Q, D) where the segments say which tokens attend."""
        q, k, v = self._all(x) if segments.places is None else self._some(x, segments.places)
        if rotation is not None:
            q, k = rotate(q, rotation.at(segments.places)), rotate(k, rotation)
        return self.proj(attend(q, k, v, segments).flatten(1))

    def _all(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # each (T, H, D / H)

    def _some(self, x: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        """Queries of the tokens at `places` alone, which the other products of `_all` would be wasted on."""
        dim, weight, bias = x.shape[1], self.qkv.weight, self.qkv.bias
        of_queries, of_others = slice(dim), slice(dim, None)
        q = F.linear(x.index_select(0, places), weight[of_queries], None if bias is None else bias[of_queries])
        kv = F.linear(x, weight[of_others], None if bias is None else bias[of_others])
        return (q.unflatten(-1, (self.num_heads, -1)), *kv.unflatten(-1, (2, self.num_heads, -1)).unbind(1))


class Block(nn.Module):
    """Pre-norm transformer block; `scope` says which boundaries its attention respects."""

    def __init__(self, config: DocViTConfig, *, scope: str, drop_path: float = 0.0) -> None:
        super().__init__()
        dim, eps, values = config.embed_dim, config.norm_eps, config.init_values
        self.scope = scope
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, config.num_heads, qkv_bias=config.qkv_bias)
        self.ls1 = LayerScale(dim, values) if values else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), drop=config.drop_rate)
        self.ls2 = LayerScale(dim, values) if values else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(
        self, x: Tensor, layout: TokenLayout, rotation: Rotation | None = None, *, last: bool = False
    ) -> Tensor:
        """Tokens (T + N * K, D) to the same, or where no block follows, `last`, to class tokens (N, D) alone.

        Nobody reads the others then: they have keys and values, but neither queries nor an MLP.
        """
        segments = layout.last if last else layout.segments[self.scope]
        attended = self.attn(self.norm1(x), segments, rotation)
        if last:
            x = x.index_select(0, layout.class_tokens)
        document, documents = layout.document_of_page if last else layout.document, len(layout.page_counts)
        x = x + self._drop(self.ls1(attended), document, documents)
        return x + self._drop(self.ls2(self._feed_forward(self.norm2(x))), document, documents)

    def _feed_forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.mlp(x)
        # a few rows at a time: what lies between its layers, four times as wide, stays in the processor's caches
        return torch.cat([self.mlp(rows) for rows in x.split(CACHED_ROWS)])

    def _drop(self, branch: Tensor, document: Tensor, documents: int) -> Tensor:
        if not self.training or self.drop_path.drop_prob == 0.0:
            return branch
        # timm draws for each element of the first dimension: here those have to be documents, not tokens
        keep = self.drop_path(branch.new_ones(documents, 1))
        return branch * keep[document]


class DocViT(nn.Module):
    """A vision transformer whose tokens are the patches of all pages of a document.

    `forward` takes a `PatchSequence` of B documents and gives logits (B, num_classes). Parameter names are timm's.
    """

    def __init__(self, config: DocViTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.embed_dim
        self.num_classes = config.num_classes
        self.embed_dim = dim
        self.num_features = POOLINGS[config.pooling] * dim  # width of a document's feature
        self.patch_embed = STEMS[config.stem](config.in_chans, config.patch_size, dim)
        if not config.depth:
            if not isinstance(self.patch_embed, InkStem):
                raise SettingError(
                    f"without blocks the {config.stem} stem tells nothing of a page: take ink, or blocks"
                )
            for part in (self.patch_embed.norm, self.patch_embed.proj):  # nobody reads patches, so nothing is learned
                part.requires_grad_(False)
        self.cls_token = nn.Parameter(torch.empty(1, dim))
        self.reg_token = nn.Parameter(torch.empty(config.num_registers, dim)) if config.num_registers else None
        self.positions: Positions = create_positions(
            config.positions, dim, grid=config.grid, max_pages=config.max_pages, head_dim=dim // config.num_heads
        )
        drops = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()  # also under another default
        scopes = parse_scopes(config.scopes, config.depth)
        self.blocks = nn.ModuleList(Block(config, scope=s, drop_path=p) for s, p in zip(scopes, drops, strict=True))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.head_drop = nn.Dropout(config.drop_rate)
        self.head = create_head(self.num_features, config.num_classes)
        self._init_weights()

    def _init_weights(self) -> None:
        trunc_normal_(self.cls_token, std=0.02)
        if self.reg_token is not None:
            trunc_normal_(self.reg_token, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)  # as in the ViT paper; a fixed 0.02 starves narrow models
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens of a page before its patches: the class token and the registers."""
        return 1 + self.config.num_registers

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names that an optimiser should not decay (timm's convention)."""
        positions = {f"positions.{name}" for name, _ in self.positions.named_parameters()}
        return {"cls_token", "reg_token"} | positions

    def pack(self, documents: Any, *, max_pages: int | None = None, drop_blank: bool = True) -> PatchSequence:
        """`docvit.pack` with this model's patch size, page size, channels and normalisation."""
        c = self.config
        return pack(
            documents,
            c.patch_size,
            size=c.page_size,
            channels=c.in_chans,
            mean=c.mean,
            std=c.std,
            max_pages=max_pages,
            drop_blank=drop_blank,
        )

    def _embed(self, batch: PatchSequence, layout: TokenLayout) -> tuple[Tensor, Rotation | None]:
        """Tokens before the first block (T + N * K, D), in page order, and their rotation if the scheme has one."""
        dtype = self.cls_token.dtype  # of the residual stream, also under autocast, where stems give less
        x, of_pages = self.patch_embed.embed(replace(batch, patches=batch.patches.to(dtype)), layout.page_lengths)
        at_patches, at_pages = self.positions.patches(batch), self.positions.pages(batch)
        if at_patches is not None:
            x = x + at_patches.to(dtype)
        prefix = self.cls_token if self.reg_token is None else torch.cat([self.cls_token, self.reg_token])
        prefix = prefix.expand(batch.num_pages, -1, -1)  # (N, K, D)
        for added in (of_pages, at_pages):
            prefix = prefix if added is None else prefix + added[:, None]
        tokens = torch.cat([x, prefix.flatten(0, 1).to(dtype)]).index_select(0, layout.order)
        angles = self.positions.angles(batch)
        if angles is None:
            return tokens, None
        patch_angles, page_angles = angles
        prefix_angles = page_angles.repeat_interleave(self.num_prefix_tokens, 0)
        turned = torch.cat([patch_angles, prefix_angles]).index_select(0, layout.order)
        return tokens, Rotation(turned.cos(), turned.sin())

    def _run(self, batch: PatchSequence, wanted: Callable[[str], bool] = lambda _: False) -> tuple[Features, States]:
        """Page tokens, and those states of all tokens that are wanted."""
        layout = TokenLayout.of(batch, self.num_prefix_tokens, parse_scopes(self.config.scopes, self.config.depth))
        x, rotation = self._embed(batch, layout)
        states = {"embed": x} if wanted("embed") else {}
        last = False
        for i, block in enumerate(self.blocks):
            name = f"blocks.{i}"
            last = i == len(self.blocks) - 1 and not wanted(name)  # of the last block only class tokens are read
            x = block(x, layout, rotation, last=last)
            if wanted(name):
                states[name] = x
        if not last:
            x = x.index_select(0, layout.class_tokens)
        return Features(self.norm(x), layout.document_of_page, layout.page_counts), states

    def forward_features(self, batch: PatchSequence) -> Features:
        """Page tokens after the last block, normalised: `.pages` (N, D)."""
        features, _ = self._run(batch)
        return features

    def forward_head(self, x: Features, pre_logits: bool = False) -> Tensor:
        """Pools page tokens to documents (B, F) and classifies them (B, num_classes); `pre_logits` stops between.

        F is `num_features`: D, 2 D under `mean+std` pooling, 3 D under `mean+std+first`.
        """
        pooled = pool(x.pages.float(), x.page_counts, self.config.pooling).to(x.pages.dtype)
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def forward_pages(self, x: Features) -> Tensor:
        """What each page token alone says (N, num_classes); under mean pooling their mean is `forward`'s."""
        return self.head(self.alone(x.pages))

    def alone(self, pages: Tensor) -> Tensor:
        """Features (N, F) of documents of which each has one of these page tokens (N, D): no page differs from it."""
        spread = pages.new_full(pages.shape, LEAST_SPREAD)
        return torch.cat([pages, spread, pages][: POOLINGS[self.config.pooling]], 1)

    def forward(self, batch: PatchSequence) -> Tensor:
        return self.forward_head(self.forward_features(batch))

    def forward_intermediates(self, batch: PatchSequence, names: Collection[str] | None = None) -> States:
        """States by name, for distillation and explanation: all of them, or `names`.

        `embed`, `blocks.0` .. `blocks.{depth - 1}`: all tokens (T + N * K, D), page by page, a page's prefix tokens
        before its patches; `pages`: normalised page tokens (N, D); `document`: (B, F); `logits`: (B, num_classes).

        Raises:
            ValueError: no state is called so.
        """
        known = ["embed", *(f"blocks.{i}" for i in range(len(self.blocks))), "pages", "document", "logits"]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise SettingError(f"no state {', '.join(map(repr, unknown))}: choose from {', '.join(known)}")

        def wanted(name: str) -> bool:
            return names is None or name in names

        features, states = self._run(batch, wanted)
        document = self.forward_head(features, pre_logits=True)
        states |= {"pages": features.pages, "document": document, "logits": self.head(self.head_drop(document))}
        return {name: state for name, state in states.items() if wanted(name)}

    def reset_classifier(self, num_classes: int, classes: Sequence[str] = ()) -> None:
        """A fresh head for `num_classes` classes (0: none, the pooled feature comes out)."""
        self.config = replace(self.config, num_classes=num_classes, classes=tuple(classes))
        self.num_classes = num_classes
        self.head = create_head(self.num_features, num_classes).to(self.norm.weight)

    def save_pretrained(self, folder: str, *, dtype: torch.dtype | None = None) -> None:
        """Writes `config.json` and `model.safetensors` (weights as `dtype`, or as they are)."""
        from docvit.model.pretrained import save_pretrained

        save_pretrained(self, folder, dtype=dtype)

    @classmethod
    def from_pretrained(cls, folder: str | None = None) -> DocViT:
        """From a folder, a hub id, or (None) the model in the box; see `docvit.weights.load_pretrained`."""
        from docvit.model.pretrained import load_pretrained

        return load_pretrained(folder)

    @classmethod
    def from_timm(cls, model: str | nn.Module, *, pretrained: bool = False, **overrides: Any) -> DocViT:
        """From a timm ViT, by name or instance; see `docvit.weights.from_timm`."""
        from docvit.model.conversion import from_timm

        return from_timm(model, pretrained=pretrained, **overrides)
