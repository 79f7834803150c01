"""The sizes and the cost of attention: by formula, and as measured on a real forward pass."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from docvit.documents.pages import PageStack
from docvit.documents.patches import PatchSequence
from docvit.model import ink, pooling
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.words import count_ngrams, page_ngrams

FLOAT = 4  # bytes: activations are counted in float32
INDEX = 8

Size = tuple[int, int]


@dataclass(frozen=True)
class AttentionShapes:
    """Every size of one layer of multi-head self-attention (Vaswani et al., arXiv 1706.03762); weights as (in, out).

    Attributes:
        positions: how often positions are added: once, before the first block, however many blocks follow.
        heads: H.
        query, key, value: one head's layers.
        scores: one head's matrix of softmax(query @ key.T).
        concat: the heads' outputs side by side, (tokens, heads * head width).
        output: the layer after the concatenation.
    """

    positions: int
    heads: int
    query: Size
    key: Size
    value: Size
    scores: Size
    concat: Size
    output: Size


def attention_shapes(tokens: int, dim: int, heads: int, head_dim: int | None = None) -> AttentionShapes:
    """The sizes for `tokens` tokens of width `dim`.

    Args:
        head_dim: width of a head; None: the heads split the width, `dim / heads` each, as is usual.

    Raises:
        ValueError: a number below 1, or heads that do not split the width evenly.
    """
    given = {"tokens": tokens, "dim": dim, "heads": heads, "head_dim": 1 if head_dim is None else head_dim}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    if head_dim is None:
        if dim % heads:
            raise ValueError(f"{heads} heads do not split a width of {dim} evenly: give head_dim")
        head_dim = dim // heads
    layer, joined = (dim, head_dim), heads * head_dim
    return AttentionShapes(1, heads, layer, layer, layer, (tokens, tokens), (tokens, joined), (joined, dim))


@dataclass(frozen=True)
class MeasuredCost:
    """One forward pass, counted: FLOPs of its matrix products and convolutions, and bytes kept for a backward pass."""

    flops: int
    memory: int


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass, by formula.

    Attributes:
        tokens: patches, class tokens and registers.
        blocks: scope -> number of blocks that have it.
        scores: scope -> side of the square score matrix of each segment; every head of such a block has one. In the
            last block only class tokens attend, and it has only their rows.
        score_memory: bytes of all score matrices of the model, if they were kept; the fused kernels never write them.
        flops: of matrix products and convolutions, two per multiply-add.
        memory: bytes of activations that are kept for a backward pass, in float32, without parameters and indices, but
            with those of n-grams.
        word_flops: share of `flops` for words: the maps of their vectors to tokens. Summing the vectors of n-grams is
            additions, and looking them up is copying: neither is a product of matrices.
    """

    tokens: int
    blocks: dict[str, int]
    scores: dict[str, tuple[int, ...]]
    score_memory: int
    flops: int
    memory: int
    word_flops: int = 0


def patch_counts(batch: PatchSequence, layout: str = "packed") -> list[int]:
    """Patches of each page (N): `packed` as they are, `undropped` with the blank ones, `padded` to the largest grid."""
    if layout == "packed":
        return batch.page_bounds.diff().tolist()
    if layout == "undropped":
        return batch.grids.prod(1).tolist()
    if layout == "padded":
        return [int(batch.grids.amax(0).prod())] * batch.num_pages
    raise ValueError(f"no layout {layout!r}: choose packed, undropped or padded")


def predict_cost(config: DocViTConfig, batch: PatchSequence, layout: str = "packed") -> Cost:
    """The cost of a batch for a model of these settings; see `patch_counts` for `layout`."""
    counts = torch.tensor(patch_counts(batch, layout))
    pages = counts + 1 + config.num_registers  # in tokens
    ends = torch.cat([torch.zeros(1, dtype=torch.long), pages.cumsum(0)])
    lengths = {"page": pages, "document": ends[batch.document_bounds].diff()}
    scopes = config.block_scopes
    others, last = scopes[:-1], scopes[-1:]
    blocks = Counter(scopes)
    scores = {scope: tuple(lengths[scope].tolist()) for scope in sorted(blocks)}
    class_tokens = {"page": torch.ones_like(pages), "document": batch.document_bounds.diff()}
    entries = sum(side**2 for scope in others for side in scores[scope])
    entries += sum(int((class_tokens[scope] * lengths[scope]).sum()) for scope in last)
    tokens, patches, dim, ratio = int(pages.sum()), int(counts.sum()), config.embed_dim, config.mlp_ratio
    width = pooling.width(config.pooling) * dim
    stem = STEM_COSTS[config.stem](config)
    # key and value 2 D^2; query and output 2 D^2, the MLP's two layers 2 ratio D^2; scores and their use 2 D per entry
    attending = len(others) * tokens + len(last) * batch.num_pages
    products = (config.depth * tokens * 2 + attending * (2 + 2 * ratio)) * dim**2 + 2 * dim * entries
    heads = 2 * batch.num_documents * (width + config.document_words) * config.num_classes
    words = _words(config, batch, patches)
    flops = 2 * products + patches * stem.flops + batch.num_pages * stem.page_flops + heads + words.flops
    floats = tokens * sum(_kept_per_token(config, scores[scope]) for scope in others)
    floats += sum(_kept_by_the_last(config, tokens, batch.num_pages, scores[scope]) for scope in last)
    # in and out of the norm of class tokens
    floats += 2 * dim * batch.num_pages + pooling.floats_kept(config.pooling, dim, batch.num_pages, batch.num_documents)
    floats += patches * stem.floats * config.reads_patches + batch.num_pages * stem.page_floats
    return Cost(
        tokens=tokens,
        blocks=dict(sorted(blocks.items())),
        scores=scores,
        score_memory=FLOAT * config.num_heads * entries,
        flops=round(flops),
        memory=round(FLOAT * floats + words.memory),
        word_flops=words.flops,
    )


def _kept_per_token(config: DocViTConfig, lengths: Sequence[int]) -> float:
    """Numbers that a block keeps of each token: 9 + 2 mlp_ratio widths and a little."""
    # in and out of both norms; query, key, value; attention's result, before and after segments are joined; in and out
    # of the MLP's activation
    widths = 4 + 3 + 2 + 2 * config.mlp_ratio
    if config.init_values is not None:  # what LayerScale multiplies
        widths += 2
    if _turns_in_place(config, lengths):
        widths += 2  # query and key are turned, and what they were lies in memory with the value
    return widths * config.embed_dim + config.num_heads + 4  # the softmax's sums; the norms' means and deviations


def _kept_by_the_last(config: DocViTConfig, tokens: int, pages: int, lengths: Sequence[int]) -> float:
    """Numbers that the last block keeps: for keys and values of all tokens, for the rest of class tokens alone."""
    widths = 2 + 2 + _turns_in_place(config, lengths)  # in and out of the first norm; key, value
    # in and out of the queries' layer; attention's result, twice; in and out of the second norm and of the MLP's
    # activation
    of_pages = 2 + 2 + 2 + 2 * config.mlp_ratio
    if config.init_values is not None:
        of_pages += 2
    floats = tokens * (widths * config.embed_dim + 2)
    return floats + pages * (of_pages * config.embed_dim + config.num_heads + 4)


def _turns_in_place(config: DocViTConfig, lengths: Sequence[int]) -> bool:
    """Whether rotated queries and keys stay in memory; segments that have to be put in order are copied in any case."""
    return config.positions == "rope" and list(lengths) == sorted(lengths)


class StemCost(NamedTuple):
    """FLOPs, and numbers kept for a backward pass, of one patch and of one page beside its patches."""

    flops: float
    floats: float
    page_flops: float = 0
    page_floats: float = 0


def _linear(config: DocViTConfig) -> StemCost:
    pixels = config.in_chans * config.patch_size**2
    return StemCost(2 * pixels * config.embed_dim, pixels)


def _conv(config: DocViTConfig) -> StemCost:
    halvings, dim = int(math.log2(config.patch_size)), config.embed_dim
    widths = [config.in_chans] + [max(16, dim // 2 ** (halvings - 1 - i)) for i in range(halvings)]
    areas = [(config.patch_size // 2**i) ** 2 for i in range(halvings + 1)]
    convs = sum(9 * widths[i] * widths[i + 1] * areas[i + 1] for i in range(halvings))
    outputs = sum(width * area for width, area in zip(widths[1:], areas[1:], strict=True))
    return StemCost(2 * (convs + widths[-1] * dim), widths[0] * areas[0] + 2 * outputs)


def _ink(config: DocViTConfig) -> StemCost:
    (features, statistics), dim = ink.sizes(config.in_chans, config.patch_size), config.embed_dim
    flops = 2 * (features * 2 * dim + 2 * dim * dim)  # edges are no products of matrices
    return StemCost(flops, 2 * features + 4 * dim, 2 * statistics * dim, 3 * statistics)  # statistics: also to clamp


STEM_COSTS: dict[str, Callable[[DocViTConfig], StemCost]] = {"linear": _linear, "conv": _conv, "ink": _ink}


def _words(config: DocViTConfig, batch: PatchSequence, patches: int) -> MeasuredCost:
    """The cost of words: their vectors are mapped from `word_dim` to D for each page, and for each patch."""
    if not config.words:
        return MeasuredCost(0, 0)
    bags = [(batch.num_pages, page_ngrams(batch))]
    bags += [(patches, batch.word_bounds)] if config.reads_patches else []
    ids = batch.words.cpu() % config.words
    ngrams = sum(len(count_ngrams(ids, bounds, config.words).ids) for _, bounds in bags)
    rows = sum(count for count, _ in bags)
    # of an n-gram its weight and its bucket; of a bag its vector, where it begins, and its size, twice
    memory = ngrams * (FLOAT + INDEX) + rows * (FLOAT * config.word_dim + 3 * INDEX)
    return MeasuredCost(2 * rows * config.word_dim * config.embed_dim, memory)


def measure_cost(model: DocViT, batch: PatchSequence) -> MeasuredCost:
    """Runs the model once, in float32, and counts.

    Memory is what autograd keeps of the pass, each storage once, parameters and buffers left out. What it would keep
    is counted and freed at once, so that counting needs no more memory than a forward pass.
    """
    own = {StorageWeakRef(t.untyped_storage()) for t in (*model.parameters(), *model.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def count(saved: Tensor) -> None:
        storage = saved.untyped_storage()
        kept.setdefault(StorageWeakRef(storage), storage.nbytes())

    # torch before 2.7 does not count the CPU's attention kernel
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda _: None), counter:  # type: ignore[arg-type, return-value]
        model(batch)
    return MeasuredCost(counter.get_total_flops(), sum(size for ref, size in kept.items() if ref not in own))


def _attention_flops(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    batch, heads, length, dim = query
    return 4 * batch * heads * length * key[2] * dim


@dataclass(frozen=True)
class PageTokens:
    """One page: its number in the document, its grid, how many of its patches become tokens, and its words.

    `words` is None where the model reads none.
    """

    page: int
    grid: Size
    kept: int
    blank: int
    words: int | None = None


@dataclass(frozen=True)
class ScopeCost:
    """The cost of a document under one setting of `scopes`, and of other layouts of its tokens (`patch_counts`)."""

    scopes: str
    predicted: Cost
    measured: MeasuredCost
    undropped: Cost
    padded: Cost


@dataclass(frozen=True)
class Inspection:
    """A document's tokens and their cost: where all blocks see the page, where all see the document, and as it is.

    `words_from` says where its words come from, as in a `Prediction`.
    """

    path: str
    num_pages: int
    pages: tuple[PageTokens, ...]
    attention: AttentionShapes
    costs: tuple[ScopeCost, ...]
    words_from: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def inspect_document(model: DocViT, stack: PageStack, *, device: torch.device | str = "cpu") -> Inspection:
    """Inspects one document; `attention` is for one layer over the whole document. Runs the model once per scope."""
    batch = model.pack([stack])
    kept, cells = patch_counts(batch), patch_counts(batch, "undropped")
    c = model.config
    words = [len(page) for page in stack.words] if c.words and stack.words else [None] * len(stack.pages)
    rows = zip(stack.indices, batch.grids.tolist(), kept, cells, words, strict=True)
    pages = tuple(PageTokens(i + 1, (grid[0], grid[1]), k, c - k, w) for i, grid, k, c, w in rows)
    tokens = sum(kept) + model.num_prefix_tokens * len(pages)
    shapes = attention_shapes(tokens, c.embed_dim, c.num_heads)
    every = dict.fromkeys(("page", "document", c.scopes))
    costs = tuple(_scope_cost(model, batch, scopes, device) for scopes in every)
    return Inspection(stack.path, stack.num_pages, pages, shapes, costs, stack.words_from if c.words else None)


def _scope_cost(model: DocViT, batch: PatchSequence, scopes: str, device: torch.device | str) -> ScopeCost:
    config = replace(model.config, scopes=scopes)
    measured = measure_cost(model.adapt(scopes=scopes).eval().to(device), batch.to(device))
    packed, undropped, padded = (predict_cost(config, batch, name) for name in ("packed", "undropped", "padded"))
    return ScopeCost(scopes, packed, measured, undropped, padded)
