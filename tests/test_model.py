"""One model over packed documents: each as if it were alone, blank patches as if masked, page order seen or not."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from docvit.model import DocViT, DocViTConfig, Layout, parse_scopes, rotate, token_places
from docvit.patches import pack
from docvit.stems import STEMS, ConvStem
from docvit.variants import create_model

P = 4
ALL_SCOPES = ["page", "document", "page-then-document:1", "page-then-document:2", "alternate:2"]
SCHEMES = ["spatial+page", "page-independent"]


def model_of(seed=0, **settings):
    """A small model in eval mode, none of whose weights is trivial."""
    torch.manual_seed(seed)
    shape = {"embed_dim": 32, "num_heads": 4, "depth": 3, "patch_size": P, "num_classes": 5, "grid": (3, 4)}
    model = DocViT(DocViTConfig(**{**shape, "max_pages": 4, "page_size": 16, **settings}))
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


# A dense reference: one document, every token of every page, everything else a (T, T) mask


def table_at(table, row, col):
    """A table (R, C, D) read at a fractional place, as a weighted sum over all its cells."""
    down, across = (torch.arange(n) - float(at) for n, at in zip(table.shape[:2], (row, col), strict=True))
    weights = (1 - down.abs()).clamp(min=0)[:, None] * (1 - across.abs()).clamp(min=0)  # (R, C)
    return torch.einsum("rc,rcd->d", weights, table)


def dense_logits(model, pages, *, masked=lambda patch: False):
    """The logits (num_classes,) of one document whose patches are all tokens; nobody attends to the masked ones."""
    c, w = model.config, model.state_dict()
    tokens, on_page, visible, class_tokens = [], [], [], []
    for number, pixels in enumerate(pages):
        at_page = 0
        if c.positions == "spatial+page":
            place = number * (c.max_pages - 1) / (len(pages) - 1) if len(pages) > c.max_pages else number
            at_page = table_at(w["positions.page"][:, None], place, 0)
        class_tokens.append(len(tokens))
        prefix = [w["cls_token"][0], *w.get("reg_token", [])]
        tokens += [token + at_page for token in prefix]
        visible += [True] * len(prefix)
        rows, cols = pixels.shape[1] // P, pixels.shape[2] // P
        for row in range(rows):
            for col in range(cols):
                patch = pixels[:, row * P : (row + 1) * P, col * P : (col + 1) * P]
                at = (row * (c.grid[0] - 1) / max(rows - 1, 1), col * (c.grid[1] - 1) / max(cols - 1, 1))
                spatial = table_at(w["positions.spatial"], *at)
                tokens.append(model.patch_embed(patch.flatten()[None])[0] + spatial + at_page)
                visible.append(not masked(patch))
        on_page += [number] * (len(tokens) - len(on_page))
    x, on_page = torch.stack(tokens), torch.tensor(on_page)
    for i, scope in enumerate(parse_scopes(c.scopes, c.depth)):
        mask = torch.tensor(visible)[None, :].expand(len(x), -1)
        if scope == "page":
            mask = mask & (on_page[:, None] == on_page[None, :])
        x = dense_block(x, {k.removeprefix(f"blocks.{i}."): v for k, v in w.items()}, c, mask)
    x = F.layer_norm(x[class_tokens], (c.embed_dim,), w["norm.weight"], w["norm.bias"], c.norm_eps)
    pooled = x.mean(0) if c.pooling == "mean" else x.amax(0)
    return w["head.weight"] @ pooled + w["head.bias"]


def dense_block(x, w, c, mask):
    width = c.embed_dim // c.num_heads
    y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], c.norm_eps)
    qkv = y @ w["attn.qkv.weight"].T + w.get("attn.qkv.bias", 0)
    heads = []
    for head in range(c.num_heads):
        q, k, v = (
            qkv[:, part * c.embed_dim + head * width : part * c.embed_dim + (head + 1) * width] for part in range(3)
        )
        scores = (q @ k.T / math.sqrt(width)).masked_fill(~mask, float("-inf"))
        heads.append(scores.softmax(-1) @ v)
    y = torch.cat(heads, 1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
    x = x + y * w.get("ls1.gamma", 1)
    y = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"], c.norm_eps)
    y = F.gelu(y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]) @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"]
    return x + y * w.get("ls2.gamma", 1)


def is_blank(patch):
    return bool((patch == patch[:, :1, :1]).all())


SETTINGS = [
    *({"scopes": scopes, "positions": positions} for scopes in ALL_SCOPES for positions in SCHEMES),
    {"pooling": "max", "num_registers": 2, "init_values": 0.5, "qkv_bias": False, "scopes": "alternate:2"},
    {"stem": "conv", "in_chans": 1, "mlp_ratio": 2.0},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@torch.no_grad()
def test_leaving_blank_patches_out_is_masking_them(settings):
    model = model_of(**settings)
    channels = model.config.in_chans
    packed = model(pack(documents(channels), P, channels=channels))
    expected = [dense_logits(model, document, masked=is_blank) for document in documents(channels)]
    close(packed, torch.stack(expected))


@pytest.mark.parametrize("settings", SETTINGS[::3], ids=lambda s: "-".join(map(str, s.values())))
@torch.no_grad()
def test_with_every_patch_kept_the_model_is_an_ordinary_dense_transformer(settings):
    model = model_of(**settings)
    channels = model.config.in_chans
    packed = model(pack(documents(channels), P, channels=channels, drop_blank=False))
    close(packed, torch.stack([dense_logits(model, document) for document in documents(channels)]))


# Packed equals one by one


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_packed_equals_one_by_one_in_outputs_and_gradients(settings):
    together, alone = model_of(**settings), model_of(**settings)
    channels = together.config.in_chans
    target = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    packed = together(pack(documents(channels), P, channels=channels))
    (packed * target).sum().backward()
    single = [alone(pack([document], P, channels=channels)) for document in documents(channels)]
    close(packed, torch.cat(single))
    (torch.cat(single) * target).sum().backward()
    expected = dict(alone.named_parameters())
    for name, parameter in together.named_parameters():
        assert parameter.grad.abs().max() > 0, name
        scale = expected[name].grad.abs().max()
        close(parameter.grad / scale, expected[name].grad / scale)


@torch.no_grad()
def test_the_order_of_a_batch_changes_nothing():
    model, order = model_of(scopes="alternate:2"), [3, 0, 4, 2, 1]
    logits = model(model.pack(documents()))
    close(model(model.pack([documents()[i] for i in order])), logits[order])


@torch.no_grad()
def test_documents_do_not_see_one_another():
    model, batch = model_of(), documents()
    before = model(model.pack(batch))
    batch[1][0] = batch[1][0].flip(1)
    after = model(model.pack(batch))
    close(after[[0, 2, 3, 4]], before[[0, 2, 3, 4]], 1e-6)
    assert (after[1] - before[1]).abs().max() > 1e-3


# The order of pages


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("scopes", ALL_SCOPES)
@torch.no_grad()
def test_page_order_is_seen_by_spatial_page_alone(scopes, pooling):
    pages, order = [page(3, 4, seed) for seed in range(3)], [2, 0, 1]
    for positions in SCHEMES:
        model = model_of(positions=positions, scopes=scopes, pooling=pooling)
        logits = model(model.pack([pages, [pages[i] for i in order]]))
        difference = (logits[0] - logits[1]).abs().max()
        if positions == "page-independent":  # a transformer over a set of pages, whatever its scopes
            assert difference < 1e-5
        else:
            assert difference > 1e-2


@torch.no_grad()
def test_a_page_sees_the_others_only_where_a_block_sees_the_document():
    pages = [page(3, 4, seed) for seed in range(2)]
    for scopes in ALL_SCOPES:
        model = model_of(scopes=scopes)
        before = model.forward_features(model.pack([pages])).pages[0]
        after = model.forward_features(model.pack([[pages[0], page(3, 4, 9)]])).pages[0]
        difference = (after - before).abs().max()
        assert difference < 1e-6 if scopes == "page" else difference > 1e-3


@pytest.mark.parametrize("num_pages", [5, 65, 200])
@torch.no_grad()
def test_more_pages_than_the_table_has(num_pages):
    model = model_of()
    logits = model(model.pack([[page(1, 2, seed % 7, blank=0) for seed in range(num_pages)]]))
    assert logits.isfinite().all()


def test_gradients_flow_to_the_page_table_beyond_its_length():
    model = model_of()
    model(model.pack([[page(1, 1, seed) for seed in range(9)]])).sum().backward()
    assert (model.positions.page.grad.abs().sum(1) > 0).all()


# timm's faces


def test_the_parts_make_the_whole():
    model = model_of()
    batch = model.pack(documents())
    features = model.forward_features(batch)
    assert features.pages.shape == (13, 32)
    assert features.page_counts.tolist() == [1, 3, 1, 6, 2]
    assert features.document_of_page.tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 3, 3, 3, 4, 4]
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (5, 32)
    close(pooled[1], features.pages[1:4].mean(0))
    assert torch.equal(model.head(pooled), model(batch))


@pytest.mark.parametrize("registers", [0, 3])
@torch.no_grad()
def test_intermediate_states_by_name(registers):
    model = model_of(num_registers=registers)
    batch = model.pack(documents())
    states, features = model.forward_intermediates(batch), model.forward_features(batch)
    assert list(states) == ["embed", "blocks.0", "blocks.1", "blocks.2", "pages", "document", "logits"]
    tokens = batch.num_patches + batch.num_pages * (1 + registers)
    for name in ("embed", "blocks.0", "blocks.1", "blocks.2"):
        assert states[name].shape == (tokens, 32)
    assert torch.equal(states["pages"], features.pages)
    assert torch.equal(states["document"], model.forward_head(features, pre_logits=True))
    assert torch.equal(states["logits"], model(batch))
    at_patches = states["embed"][token_places(batch, 1 + registers)]
    close(at_patches, model.patch_embed(batch.patches) + model.positions.patches(batch), 1e-6)
    layout = Layout.of(batch, 1 + registers, ["document"])
    prefix = states["embed"][layout.class_tokens[:, None] + torch.arange(1 + registers)]
    expected = model.cls_token if registers == 0 else torch.cat([model.cls_token, model.reg_token])
    close(prefix, expected + model.positions.pages(batch)[:, None], 1e-6)
    close(model.norm(states["blocks.2"][layout.class_tokens]), states["pages"], 1e-6)


@torch.no_grad()
def test_pages_alone_average_to_the_logits_under_mean_pooling():
    model = model_of()
    features = model.forward_features(model.pack(documents()))
    by_page = model.forward_pages(features).split(features.page_counts.tolist())
    close(torch.stack([logits.mean(0) for logits in by_page]), model.forward_head(features))


def test_a_fresh_head():
    model = model_of(classes=tuple("abcde"))
    batch = model.pack(documents())
    model.reset_classifier(2, ("x", "y"))
    assert (model.num_classes, model.config.num_classes, model.config.classes) == (2, 2, ("x", "y"))
    assert model(batch).shape == (5, 2)
    model.reset_classifier(7)
    assert model.config.classes == ()
    assert model(batch).shape == (5, 7)
    model.reset_classifier(0)
    assert torch.equal(model(batch), model.forward_head(model.forward_features(batch), pre_logits=True))
    model.reset_classifier(3)
    with pytest.raises(ValueError, match="class names"):
        model.reset_classifier(4, ("x", "y"))
    assert model(batch).shape == (5, model.num_classes) == (5, 3)


def test_the_names_that_should_not_decay_exist():
    model = model_of(num_registers=1)
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() == {"cls_token", "reg_token", "positions.spatial", "positions.page"}
    assert model.no_weight_decay() <= names


@pytest.mark.parametrize(("name", "width", "depth"), [("tiny_patch16", 192, 12), ("small_patch16", 384, 12)])
def test_variants_are_in_timms_registry(name, width, depth):
    model = timm.create_model(f"docvit_{name}", num_classes=8, scopes="page")
    assert isinstance(model, DocViT)
    assert (model.embed_dim, len(model.blocks), model.head.out_features) == (width, depth, 8)
    assert model.config.scopes == "page"


@pytest.mark.parametrize("name", sorted(timm.list_models("docvit_*")))
@torch.no_grad()
def test_every_variant_reads_pages(name):
    model = create_model(name, num_classes=3, depth=2).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, model.config.in_chans), dtype=np.uint8)
    assert model(model.pack([[pixels.squeeze()], [pixels.squeeze()] * 2])).shape == (2, 3)


def test_variants_have_the_shapes_of_timms():
    for name in ("tiny", "small", "base"):
        with torch.device("meta"):
            ours = timm.create_model(f"docvit_{name}_patch16", positions="page-independent")
            theirs = timm.create_model(f"vit_{name}_patch16_224")
        extra = theirs.pos_embed.shape[-1]  # the class token's position, which a DocViT has in the token itself
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - extra


def test_what_cannot_be_created_is_said():
    with pytest.raises(ValueError, match="docvit_small_patch16"):
        create_model("docvit_gigantic")
    with pytest.raises(ValueError, match="frobnicate"):
        create_model("docvit_tiny_patch16", frobnicate=1)
    with pytest.raises(ValueError, match="from_timm"):
        timm.create_model("docvit_tiny_patch16", pretrained=True)


def test_pack_takes_the_models_own_settings():
    model = model_of(in_chans=1, mean=(0.9,), std=(0.2,), page_size=16)
    array = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
    batch = model.pack([[array]], drop_blank=False)
    assert batch.grids.tolist() == [[2, 3]]
    close(batch.patches[0], (torch.from_numpy(array[:4, :4]).flatten() / 255 - 0.9) / 0.2)
    assert model.pack([[array] * 5], max_pages=2).page_index.tolist() == [0, 4]


# Configuration


@pytest.mark.parametrize(
    ("scopes", "depth", "expected"),
    [
        ("page", 3, "ppp"),
        ("document", 3, "ddd"),
        ("page-then-document:1", 4, "pppd"),
        ("page-then-document:4", 4, "dddd"),
        ("alternate:1", 3, "ddd"),
        ("alternate:2", 5, "pdpdp"),
        ("alternate:3", 6, "ppdppd"),
        ("alternate:4", 4, "pppd"),
    ],
)
def test_scopes_spelled_out(scopes, depth, expected):
    assert parse_scopes(scopes, depth) == tuple({"p": "page", "d": "document"}[letter] for letter in expected)


@pytest.mark.parametrize(
    "scopes",
    [
        *("", "pages", "page:2", "document:1", "page-then-document", "page-then-document:4", "page-then-document:2:1"),
        *("alternate", "alternate:", "alternate:0", "alternate:4", "alternate:-1", "alternate:x", "alternate:1.5"),
    ],
)
def test_scopes_that_do_not_exist(scopes):
    with pytest.raises(ValueError, match="page-then-document:K"):
        parse_scopes(scopes, 3)


def test_a_configuration_survives_json():
    config = DocViTConfig(grid=(3, 5), classes=("α", "b"), num_classes=2, mean=(0.1, 0.2, 0.3), init_values=None)
    assert DocViTConfig.from_dict(json.loads(json.dumps(config.as_dict()))) == config
    assert DocViTConfig(**config.as_dict()) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 3


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"frobnicate": 1, "widgets": 2}, "frobnicate, widgets"),
        ({"embed_dim": 100, "num_heads": 3}, "num_heads"),
        ({"in_chans": 2}, "in_chans"),
        ({"pooling": "median"}, "mean, max"),
        ({"stem": "resnet"}, "linear, conv"),
        ({"scopes": "everything"}, "alternate:K"),
        ({"num_classes": 3, "classes": ["a", "b"]}, "2 class names for 3 classes"),
    ],
)
def test_settings_that_make_no_model(settings, says):
    with pytest.raises(ValueError, match=says):
        DocViTConfig.from_dict(settings)


def test_an_unknown_positional_scheme_makes_no_model():
    with pytest.raises(ValueError, match=r"spatial\+page"):
        model_of(positions="sideways")


# Training


def test_stochastic_depth_is_drawn_for_whole_documents():
    model = model_of(drop_path=0.5, depth=2).train()
    assert [block.drop_path.drop_prob for block in model.blocks] == [0.0, 0.5]
    same = model.pack([[page(3, 4), page(3, 4)]] * 64)
    with torch.no_grad():
        states = model.forward_intermediates(same)
    before, after = (states[f"blocks.{i}"].unflatten(0, (64, -1)) for i in range(2))
    close(before, before[:1].expand_as(before))
    outcomes = []
    for document in after:
        if not any(torch.allclose(document, other, atol=1e-5) for other in outcomes):
            outcomes.append(document)
    assert len(outcomes) == 4  # each of the block's two branches is kept or not, for a document as a whole


@torch.no_grad()
def test_stochastic_depth_keeps_the_mean_and_rests_in_eval():
    model = model_of(drop_path=0.3, depth=2)
    batch = model.pack([[np.full((P, P, 3), 255, np.uint8)]] * 4000)  # a class token each, no patches
    close(model(batch), model_of(depth=2)(batch))
    layout = Layout.of(batch, 1, ["document"])
    kept = model.blocks[1].train()._drop(torch.ones(4000, 1), layout)
    assert ((kept == 0) | (kept == 1 / 0.7)).all()
    assert kept.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("settings", [{}, {"stem": "conv", "num_registers": 1}])
def test_a_model_learns(settings):
    """Two documents of the same two pages in either order: only their order tells them apart."""
    model = model_of(num_classes=2, **settings).train()
    first, second = page(3, 4, 0), page(3, 4, 1)
    batch, labels = model.pack([[first, second], [second, first]]), torch.tensor([0, 1])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(40):
        loss = F.cross_entropy(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


# Stems, rotation, precision, compilation


def test_the_convolutional_stem_keeps_to_its_patch():
    torch.manual_seed(0)
    stem, patches = ConvStem(3, 8, 32), torch.randn(5, 3 * 64)
    tokens = stem(patches)
    assert tokens.shape == (5, 32)
    close(torch.cat([stem(patch[None]) for patch in patches]), tokens)
    close(stem(torch.cat([patches, patches[:2] + 5]))[:5], tokens)
    assert stem(patches[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match="power of two"):
        ConvStem(3, 12, 32)


@torch.no_grad()
def test_the_ink_stem_keeps_to_its_patch_once_trained():
    torch.manual_seed(0)
    stem = STEMS["ink"](3, 16, 32)
    for _ in range(20):
        stem(torch.randn(50, 3 * 256))  # statistics of a batch: while it trains, patches do see one another
    stem.eval()
    patches = torch.randn(5, 3 * 256)
    close(torch.cat([stem(patch[None]) for patch in patches]), stem(patches))
    assert stem(patches[:0]).shape == (0, 32)


def test_rotation_keeps_lengths_and_sees_differences_alone():
    q, k = torch.randn(2, 1, 2, 8)
    angles = torch.randn(4)

    def score(i, j):
        return (rotate(q, i * angles[None]) * rotate(k, j * angles[None])).sum(-1)

    close(rotate(q, angles[None]).norm(dim=-1), q.norm(dim=-1))
    close(score(3, 1), score(9, 7))
    pairs = torch.view_as_complex(q.unflatten(-1, (4, 2))) * torch.polar(torch.ones(4), angles)
    close(rotate(q, angles[None]), torch.view_as_real(pairs).flatten(-2))


@torch.no_grad()
def test_autocast_and_other_precisions_say_about_the_same():
    model = model_of()
    batch = model.pack(documents())
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        close(model(batch).float(), expected, 0.1)
    close(model.double()(batch).float(), expected, 1e-4)
    close(model.bfloat16()(batch).float(), expected, 0.2)


@torch.no_grad()
def test_blocks_compile_as_one_graph():
    model = model_of(scopes="alternate:2")
    batch = model.pack(documents())
    layout = Layout.of(batch, 1, parse_scopes("alternate:2", 3))
    x, _ = model._embed(batch, layout)

    def run(x, layout):
        for block in model.blocks:
            x = block(x, layout)
        return x

    close(torch.compile(run, fullgraph=True, backend="eager")(x, layout), run(x, layout))
