"""Variants by name, and the page-independent baselines: other settings of the one model, blind to page order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import timm
import torch
from reference import P, close, page
from typer.testing import CliRunner

import docvit.cli
import docvit.model.timm_registry
from docvit.documents.patches import pack
from docvit.evaluation.cost import predict_cost
from docvit.model.config import POSITIONS, DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.stems import InkStem
from docvit.model.variants import BASELINES, VARIANTS, baseline_of, create_model, with_baseline
from docvit.training.recipe import BOUNDARIES

SMALL = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": P, "num_classes": 5, "page_embeddings": 4}


@pytest.mark.parametrize(("name", "width", "depth"), [("tiny_patch16", 192, 12), ("small_patch16", 384, 12)])
def test_variants_are_in_timms_registry(name, width, depth):
    model = timm.create_model(f"docvit_{name}", num_classes=8, scopes="page")
    assert isinstance(model, DocViT)
    assert (model.embed_dim, len(model.blocks), model.head.out_features) == (width, depth, 8)
    assert model.config.scopes == "page"


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_every_variant_reads_pages(name):
    model = create_model(name, num_classes=3, depth=2).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, model.config.in_chans), dtype=np.uint8)
    assert model(model.pack([[pixels.squeeze()], [pixels.squeeze()] * 2])).shape == (2, 3)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_takes_every_scheme(name):
    with torch.device("meta"):
        for positions in POSITIONS:
            assert create_model(name, positions=positions).config.positions == positions


@torch.no_grad()
def test_without_blocks_page_tokens_are_normalised_stem_statistics():
    torch.manual_seed(0)
    model = create_model("docvit_linear_patch32", num_classes=3, page_size=64).eval()
    assert not model.blocks
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    batch = model.pack([list(pixels)])
    _, statistics = model.patch_embed.embed(batch, batch.page_bounds.diff())
    pages = model.norm(model.cls_token + statistics + model.positions.pages(batch))
    spread = pages.var(0, unbiased=False).clamp(min=1e-6).sqrt()
    close(model(batch)[0], model.head(torch.cat([pages.mean(0), spread, pages[0]])))
    cost = predict_cost(model.config, batch)
    assert (cost.blocks, cost.scores, cost.score_memory) == ({}, {}, 0)
    with torch.enable_grad():
        model(batch).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)  # as several processes need it
    with pytest.raises(ValueError, match="without blocks the linear stem"):
        create_model("docvit_linear_patch32", stem="linear")


def test_the_bundled_model_is_the_linear_variant_with_words():
    bundled = DocViT.from_pretrained()
    learnt = {
        name: getattr(bundled.config, name)
        for name in ("num_classes", "classes", "known", "min_score", "known_pixels", "min_score_pixels")
    }
    own = {**learnt, "words": 16_384, "boundaries": BOUNDARIES, "document_words": 16}
    model = create_model("docvit_linear_patch32", **own)
    assert model.config == bundled.config
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in bundled.named_parameters()]
    assert bundled.turns.side.isfinite()
    assert len(bundled.config.known) == 2
    assert 0 < bundled.config.min_score < 1
    assert isinstance(model.patch_embed, InkStem)
    assert model.head.in_features == 3 * model.embed_dim + 16  # mean, spread and first of the pages; words


def test_the_compact_variant():
    model = create_model("docvit_compact_patch32", num_classes=8)
    assert isinstance(model.patch_embed, InkStem)
    assert model.config.block_scopes == ("page", "document", "document")
    assert model.head.in_features == 2 * model.embed_dim == 256  # mean and spread of the pages


def test_the_teachers_differ_from_the_compact_variant_in_little():
    def settings(name):
        with torch.device("meta"):
            return create_model(f"docvit_{name}_patch32").config.as_dict()

    compact = settings("compact")
    differing = {
        name: {key: value for key, value in settings(name).items() if value != compact[key]}
        for name in ("linear", "wide")
    }
    assert differing["linear"] == {"depth": 0, "scopes": "page", "pooling": "mean+std+first"}
    assert differing["wide"] == {"embed_dim": 384, "depth": 4, "num_heads": 6}


def test_the_wide_variant_costs_ten_times_the_compact_one():
    with torch.device("meta"):
        compact, wide = (create_model(f"docvit_{name}_patch32").config for name in ("compact", "wide"))
    pages = np.random.default_rng(0).integers(0, 256, (4, 256, 192, 3), dtype=np.uint8)
    batch = pack([list(pages)], compact.patch_size, channels=compact.in_chans)
    costs = [predict_cost(config, batch).flops for config in (compact, wide)]
    assert 10 < costs[1] / costs[0] < 13
    assert compact.rendering == wide.rendering  # what is measured of pages does for both


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


# Baselines


def baseline_model(baseline):
    torch.manual_seed(0)
    model = create_model("docvit_tiny_patch16", baseline=baseline, **SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


@pytest.mark.parametrize("baseline", BASELINES)
@torch.no_grad()
def test_no_baseline_sees_the_order_of_pages(baseline):
    model, pages = baseline_model(baseline), [page(3, 4, 1), page(4, 3, 2), page(3, 4, 3), page(2, 5, 4)]
    orders = list(itertools.permutations(pages))
    logits = model(pack([list(order) for order in orders], P))
    close(logits, logits[:1].expand_as(logits))
    assert (model(pack([[page(3, 4, 5), *pages[1:]]], P)) - logits[0]).abs().max() > 1e-2  # but the pages themselves


@pytest.mark.parametrize(("baseline", "pool"), [("pages-mean", torch.mean), ("pages-max", torch.amax)])
@torch.no_grad()
def test_pages_encoded_alone_are_pooled(baseline, pool):
    model, pages = baseline_model(baseline), [page(3, 4, 1), page(4, 3, 2), page(3, 4, 3)]
    alone = model.forward_features(pack([[one] for one in pages], P)).pages
    close(model(pack([pages], P)), model.head(pool(alone, 0))[None])


@torch.no_grad()
def test_the_concatenation_is_seen_by_another_block_alone():
    model, pages = baseline_model("pages-concat"), [page(3, 4, 1), page(4, 3, 2)]
    together, alone = (model.forward_intermediates(pack([pages[:n]], P)) for n in (2, 1))
    tokens = len(alone["embed"])
    close(together["blocks.1"][:tokens], alone["blocks.1"])
    assert (together["blocks.2"][:tokens] - alone["blocks.2"]).abs().max() > 1e-2


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_baseline_is_settings_and_nothing_else(baseline):
    model = create_model("docvit_tiny_patch16", baseline=baseline, **SMALL)
    assert model.config == DocViTConfig(**SMALL, **BASELINES[baseline])
    assert baseline_of(model.config.as_dict()) == baseline
    assert with_baseline(baseline, {"depth": 2}) == {"depth": 2, **BASELINES[baseline]}
    assert with_baseline(baseline, BASELINES[baseline]) == BASELINES[baseline]  # said twice is no contradiction
    assert baseline_of({"positions": "page-independent"}) is baseline_of({}) is None


@pytest.mark.parametrize(
    ("baseline", "settings", "says"),
    [
        ("pages-median", {}, ["'pages-median'", *BASELINES]),
        ("pages-mean", {"positions": "rope"}, ["pages-mean", "positions 'rope'", "page-independent"]),
        ("pages-max", {"pooling": "mean", "scopes": "document"}, ["pooling 'mean'", "scopes 'document'"]),
        ("pages-concat", {"scopes": "alternate:2"}, ["scopes 'alternate:2'", "page-then-document:1"]),
    ],
)
def test_what_contradicts_a_baseline_is_said(baseline, settings, says):
    with pytest.raises(ValueError, match="baseline") as raised:
        create_model("docvit_tiny_patch16", baseline=baseline, **settings)
    assert all(part in str(raised.value) for part in says)


# From timm


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_a_timm_model_takes_every_scheme(positions):
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    model = DocViT.from_timm(theirs, positions=positions)
    assert torch.equal(model.blocks[1].attn.qkv.weight, theirs.blocks[1].attn.qkv.weight)
    assert model(model.pack([[torch.randn(3, 64, 48)] * 3])).isfinite().all()


# docvit train --baseline


@pytest.fixture
def train(corpus, tmp_path, monkeypatch):
    """`train(...)` is `docvit train CORPUS --output DIR ...` up to the training itself: (recipe, error)."""
    recipes = []

    def stub(data, output, recipe, **_):
        recipes.append(recipe)
        return None, [{"loss": 0.0}]

    def run(*arguments):
        recipes.clear()
        monkeypatch.setattr("docvit.training.supervised.train_documents", stub)
        command = ["train", str(corpus), "--output", str(tmp_path), *arguments]
        error = CliRunner().invoke(docvit.cli.app, command).exception
        return (recipes or [None])[0], error

    return run


def test_the_command_hands_on_what_a_baseline_consists_of(train):
    recipe, error = train("--baseline", "pages-max", "--page-size", "64")
    assert error is None
    assert recipe.settings == {"page_size": 64, **BASELINES["pages-max"]}
    for wrong in (["--baseline", "odd"], ["--baseline", "pages-mean", "--positions", "rope"]):
        recipe, error = train(*wrong)
        assert recipe is None
        assert isinstance(error, ValueError)


def test_a_run_is_resumed_under_its_own_baseline_alone(train, monkeypatch):
    found, _ = train("--baseline", "pages-max")
    monkeypatch.setattr("docvit.training.run_folder.read_recipe", lambda _: found)
    assert train("--resume", "--baseline", "pages-max")[1] is None
    assert train("--resume")[1] is None
    assert "--baseline was pages-max" in str(train("--resume", "--baseline", "pages-mean")[1])
