"""A second, dense DocViT, written from the formulas: one document, token after token, everything else a mask."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT

P = 4


def model_of(seed=0, **settings):
    """A small model in eval mode, none of whose weights is trivial."""
    torch.manual_seed(seed)
    shape = {"embed_dim": 32, "num_heads": 4, "depth": 3, "patch_size": P, "num_classes": 5, "grid": (3, 4)}
    model = DocViT(DocViTConfig(**{**shape, "page_embeddings": 4, "page_size": 16, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def page(rows, cols, seed=0, blank=0.4, channels=3):
    """A normalised page of noise, some of whose patches are blank."""
    generator = torch.Generator().manual_seed(seed)
    ink = (torch.rand(rows, cols, generator=generator) >= blank).float().repeat_interleave(P, 0).repeat_interleave(P, 1)
    return torch.randn(channels, rows * P, cols * P, generator=generator) * ink + 1


def documents(channels=3):
    """Of 1 to 6 pages (more than the page table has), portrait and landscape, one with an entirely blank page."""
    ones = {"channels": channels}
    return [
        [page(3, 4, 1, **ones)],
        [page(4, 3, 2, **ones), page(3, 4, 3, blank=1, **ones), page(2, 5, 4, **ones)],
        [page(3, 4, 5, blank=1, **ones)],
        [page(1 + i % 3, 4, 6 + i, **ones) for i in range(6)],
        [page(4, 3, 12, blank=0, **ones)] * 2,
    ]


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def is_blank(patch):
    return bool((patch == patch[:, :1, :1]).all())


# Positions


def table_at(table, row, col=0.0):
    """A table (R, C, D) read at a fractional index, as a weighted sum over all its cells."""
    down, across = (torch.arange(n) - float(at) for n, at in zip(table.shape[:2], (row, col), strict=True))
    weights = (1 - down.abs()).clamp(min=0)[:, None] * (1 - across.abs()).clamp(min=0)  # (R, C)
    return torch.einsum("rc,rcd->d", weights, table)


def squeezed(index, length, table):
    """Where entry `index` of `length` lies in a table that is too short for them."""
    return index * (table - 1) / (length - 1) if length > table else index


def paper_sinusoid(position, dim):
    """PE(pos, 2i) = sin(pos / 10000^(2i / dim)), PE(pos, 2i + 1) = cos of the same: section 3.5 of the paper."""
    turns = [position / 10000 ** (2 * (i // 2) / dim) for i in range(dim)]
    return torch.tensor([math.cos(turn) if i % 2 else math.sin(turn) for i, turn in enumerate(turns)])


def number_of(grids, page, row, col):
    """How many cells of the document come before this one."""
    return sum(rows * cols for rows, cols in grids[:page]) + row * grids[page][1] + col


def position(c, w, grids, page, row=None, col=None):
    """What is added to a patch (or without row and column, to a class token) of a document with these page grids.

    c: the model's config. w: its state, by name.
    """
    patch = row is not None
    number = number_of(grids, page, row or 0, col or 0)
    if c.positions == "continued":
        table = w["positions.number"]
        return table_at(table[:, None], squeezed(number, sum(r * s for r, s in grids), len(table)))
    if c.positions == "sincos":
        return paper_sinusoid(number, c.embed_dim)
    added = torch.zeros(c.embed_dim)
    if c.positions == "spatial+page":
        added = added + table_at(w["positions.page"][:, None], squeezed(page, len(grids), c.page_embeddings))
    if c.positions in ("spatial+page", "page-independent") and patch:
        at = [i * (to - 1) / max(of - 1, 1) for i, to, of in zip((row, col), c.grid, grids[page], strict=True)]
        added = added + table_at(w["positions.spatial"], *at)
    if c.positions == "sincos2d+page":
        added = added + paper_sinusoid(page, c.embed_dim)
        if patch:
            added = added + torch.cat([paper_sinusoid(i, c.embed_dim // 2) for i in (row, col)])
    return added


def rope_angles(width, address):
    """By how much each pair of a head's channels turns at (page, row, column)."""
    pairs = width // 2
    shares = [pairs // 3, (pairs + 1) // 3, (pairs + 2) // 3]
    return torch.tensor([x * 100 ** (-i / n) for x, n in zip(address, shares, strict=True) for i in range(n)])


# The transformer


def dense_logits(model, pages, *, masked=lambda patch: False):
    """The logits (num_classes,) of one document whose patches are all tokens; nobody attends to the masked ones."""
    c, w = model.config, model.state_dict()
    grids = [(pixels.shape[1] // P, pixels.shape[2] // P) for pixels in pages]
    tokens, addresses, visible, class_tokens = [], [], [], []
    for number, pixels in enumerate(pages):
        class_tokens.append(len(tokens))
        prefix = [w["cls_token"][0], *w.get("reg_token", [])]
        tokens += [token + position(c, w, grids, number) for token in prefix]
        addresses += [(number, 0, 0)] * len(prefix)
        visible += [True] * len(prefix)
        for row in range(grids[number][0]):
            for col in range(grids[number][1]):
                patch = pixels[:, row * P : (row + 1) * P, col * P : (col + 1) * P]
                tokens.append(model.patch_embed(patch.flatten()[None])[0] + position(c, w, grids, number, row, col))
                addresses.append((number, row, col))
                visible.append(not masked(patch))
    x, on_page = torch.stack(tokens), torch.tensor([number for number, _, _ in addresses])
    width = c.embed_dim // c.num_heads
    angles = torch.stack([rope_angles(width, a) for a in addresses]) if c.positions == "rope" else None
    for i, scope in enumerate(c.block_scopes):
        mask = torch.tensor(visible)[None, :].expand(len(x), -1)
        if scope == "page":
            mask = mask & (on_page[:, None] == on_page[None, :])
        x = dense_block(x, {k.removeprefix(f"blocks.{i}."): v for k, v in w.items()}, c, mask, angles)
    x = F.layer_norm(x[class_tokens], (c.embed_dim,), w["norm.weight"], w["norm.bias"], c.norm_eps)
    pooled = x.mean(0) if c.pooling == "mean" else x.amax(0)
    return w["head.weight"] @ pooled + w["head.bias"]


def turned(x, angles):
    """Channels (i, i + d / 2) of `x` (T, d) as complex numbers, each turned by its angle (T, d / 2)."""
    one, other = x.chunk(2, 1)
    y = torch.complex(one, other) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([y.real, y.imag], 1)


def dense_block(x, w, c, mask, angles):
    width = c.embed_dim // c.num_heads
    y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], c.norm_eps)
    qkv = y @ w["attn.qkv.weight"].T + w.get("attn.qkv.bias", 0)
    heads = []
    for head in range(c.num_heads):
        q, k, v = (
            qkv[:, part * c.embed_dim + head * width : part * c.embed_dim + (head + 1) * width] for part in range(3)
        )
        if angles is not None:
            q, k = turned(q, angles), turned(k, angles)
        scores = (q @ k.T / math.sqrt(width)).masked_fill(~mask, float("-inf"))
        heads.append(scores.softmax(-1) @ v)
    y = torch.cat(heads, 1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    x = x + y * w.get("ls1.gamma", 1)
    y = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"], c.norm_eps)
    y = F.gelu(y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    return x + y * w.get("ls2.gamma", 1)
