"""Transformer blocks whose attention sees a page or a document."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.model.attention import MaskedSegments, Segments, attend
from docvit.model.config import DocViTConfig
from docvit.model.tokens import Rotation, TokenLayout, rotate

CACHED_ROWS = 768


class Attention(nn.Module):
    """Multi-head self-attention over the segments it is handed; parameters named as in timm."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, segments: Segments | MaskedSegments, rotation: Rotation | None = None) -> Tensor:
        """Tokens (T, D) to (T, D), or to (Q, D) where the segments say which tokens attend."""
        q, k, v = self._all(x) if segments.attending is None else self._some(x, segments.attending)
        if rotation is not None:
            q, k = rotate(q, rotation.at(segments.attending)), rotate(k, rotation)
        return self.proj(attend(q, k, v, segments).flatten(1))

    def _all(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)  # each (T, H, D / H)

    def _some(self, x: Tensor, attending: Tensor) -> tuple[Tensor, ...]:
        """Queries of the attending tokens alone; keys and values of all."""
        dim, weight, bias = x.shape[1], self.qkv.weight, self.qkv.bias
        of_queries, of_others = slice(dim), slice(dim, None)
        q = F.linear(x.index_select(0, attending), weight[of_queries], None if bias is None else bias[of_queries])
        kv = F.linear(x, weight[of_others], None if bias is None else bias[of_others])
        return (q.unflatten(-1, (self.num_heads, -1)), *kv.unflatten(-1, (2, self.num_heads, -1)).unbind(1))


class LayerScale(nn.Module):
    """A learned factor per channel ("Going deeper with Image Transformers", arXiv 2103.17239)."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init_values))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with exact GELU between them; parameters named as in timm."""

    def __init__(self, dim: int, hidden: int, *, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


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
        self.drop_path = drop_path

    def forward(
        self, x: Tensor, layout: TokenLayout, rotation: Rotation | None = None, *, last: bool = False
    ) -> Tensor:
        """Tokens (T + N * K, D) to the same, or where no block follows, `last`, to class tokens (N, D) alone.

        The other tokens are not read then: they have keys and values, but neither queries nor an MLP.
        """
        segments = (layout.last if last else layout.segments)[self.scope]
        attended = self.attn(self.norm1(x), segments, rotation)
        if last:
            x = x.index_select(0, layout.class_tokens)
        document, documents = layout.document_of_page if last else layout.document, layout.page_counts.shape[0]
        x = x + self._drop(self.ls1(attended), document, documents)
        return x + self._drop(self.ls2(self._feed_forward(self.norm2(x))), document, documents)

    def _feed_forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.mlp(x)
        # a few rows at a time: the hidden layer, four times as wide, stays in the processor's caches
        return torch.cat([self.mlp(rows) for rows in x.split(CACHED_ROWS)])

    def _drop(self, branch: Tensor, document: Tensor, documents: int) -> Tensor:
        if not self.training or self.drop_path == 0.0:
            return branch
        kept = 1 - self.drop_path  # drawn for each document, not for each token
        return branch * branch.new_empty(documents, 1).bernoulli_(kept).div_(kept)[document]
