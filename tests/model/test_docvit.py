"""One model over packed documents: each as if it were alone, blank patches as if masked, page order seen or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import P, close, dense_logits, documents, is_blank, model_of, page

from docvit.documents.patches import pack
from docvit.evaluation.cost import measure_cost
from docvit.model.blocks import CACHED_ROWS
from docvit.model.config import POSITIONS
from docvit.model.docvit import DocViT
from docvit.model.stems import Stem
from docvit.model.tokens import Rotation, TokenLayout, rotate, token_indices

ALL_SCOPES = ["page", "document", "page-then-document:1", "page-then-document:2", "alternate:2"]
SETTINGS = [
    *({"scopes": scopes, "positions": "spatial+page"} for scopes in ALL_SCOPES),
    *({"scopes": "alternate:2", "positions": positions} for positions in POSITIONS),
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


@pytest.mark.parametrize("rows", [7, CACHED_ROWS])
@pytest.mark.parametrize("settings", SETTINGS[::3], ids=lambda s: "-".join(map(str, s.values())))
@torch.no_grad()
def test_with_every_patch_kept_the_model_is_an_ordinary_dense_transformer(settings, rows, monkeypatch):
    """However many rows the MLP takes at a time."""
    monkeypatch.setattr("docvit.model.blocks.CACHED_ROWS", rows)
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


@pytest.mark.parametrize("settings", [*SETTINGS, {"depth": 1}], ids=lambda s: "-".join(map(str, s.values())))
def test_the_last_block_for_class_tokens_alone_is_the_last_block(settings):
    short, full = model_of(**settings), model_of(**settings)
    batch = short.pack(documents(short.config.in_chans))
    logits, expected = short(batch), full.forward_intermediates(batch)["logits"]
    close(logits, expected)
    target = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    (logits * target).sum().backward()
    (expected * target).sum().backward()
    for one, other in zip(short.parameters(), full.parameters(), strict=True):
        scale = other.grad.abs().max()
        close(one.grad / scale, other.grad / scale)


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
def test_page_order_is_seen_by_the_schemes_that_know_pages(scopes, pooling):
    pages, order = [page(3, 4, seed) for seed in range(3)], [2, 0, 1]
    for positions in POSITIONS:
        model = model_of(positions=positions, scopes=scopes, pooling=pooling)
        logits = model(model.pack([pages, [pages[i] for i in order]]))
        difference = (logits[0] - logits[1]).abs().max()
        # the first is a transformer over a set of pages, whatever its scopes; within one page no pages differ
        if positions == "page-independent" or (positions, scopes) == ("rope", "page"):
            assert difference < 1e-5
        else:
            assert difference > 1e-3


@torch.no_grad()
def test_a_page_sees_the_others_only_where_a_block_sees_the_document():
    pages = [page(3, 4, seed) for seed in range(2)]
    for scopes in ALL_SCOPES:
        model = model_of(scopes=scopes)
        before = model.forward_features(model.pack([pages])).pages[0]
        after = model.forward_features(model.pack([[pages[0], page(3, 4, 9)]])).pages[0]
        difference = (after - before).abs().max()
        assert difference < 1e-6 if scopes == "page" else difference > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_documents_of_one_page_and_of_many_more_than_the_tables_have(positions):
    model = model_of(positions=positions, scopes="page-then-document:1")
    long = [page(1 + seed % 2, 2, seed % 7) for seed in range(70)]
    logits = model(model.pack([long, long[:1]]))
    close(logits, torch.stack([dense_logits(model, document, masked=is_blank) for document in (long, long[:1])]))


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_every_scheme_is_saved_and_loaded_back(positions, tmp_path):
    model = model_of(positions=positions)
    model.save_pretrained(tmp_path)
    again, batch = DocViT.from_pretrained(tmp_path), model.pack(documents())
    assert again.config == model.config
    assert torch.equal(again(batch), model(batch))


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
    close(states["pages"], features.pages)  # not to the bit: there, the last block works on all tokens
    close(states["document"], model.forward_head(features, pre_logits=True))
    close(states["logits"], model(batch))
    at_patches = states["embed"][token_indices(batch, 1 + registers)]
    close(at_patches, model.patch_embed(batch.patches) + model.positions.patches(batch), 1e-6)
    layout = TokenLayout.of(batch, 1 + registers, ["document"])
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


def test_a_state_that_there_is_not_is_refused():
    model = model_of()
    with pytest.raises(ValueError, match=r"no state 'blok\.1': choose from embed"):
        model.forward_intermediates(model.pack(documents()), ["blok.1"])


def test_the_names_that_should_not_decay_exist():
    model = model_of(num_registers=1)
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay() == {"cls_token", "reg_token", "positions.spatial", "positions.page"}
    assert model.no_weight_decay() <= names


def test_pack_takes_the_models_own_settings():
    model = model_of(in_chans=1, mean=(0.9,), std=(0.2,), page_size=16)
    array = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
    batch = model.pack([[array]], drop_blank=False)
    assert batch.grids.tolist() == [[2, 3]]
    close(batch.patches[0], (torch.from_numpy(array[:4, :4]).flatten() / 255 - 0.9) / 0.2)
    assert model.pack([[array] * 5], max_pages=2).page_index.tolist() == [0, 4]


# Training


def test_stochastic_depth_is_drawn_for_whole_documents():
    model = model_of(drop_path=0.5, depth=2).train()
    assert [block.drop_path for block in model.blocks] == [0.0, 0.5]
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
    batch = model.pack([[np.full((P, P, 3), 255, np.uint8)]] * 2000)  # a class token each, no patches
    close(model(batch), model_of(depth=2)(batch))
    layout = TokenLayout.of(batch, 1, ["document"])
    kept = model.blocks[1].train()._drop(torch.ones(2000, 1), layout.document, 2000)
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


def test_rotation_keeps_lengths_and_sees_differences_alone():
    q, k = torch.randn(2, 1, 2, 8)
    angles = torch.randn(4)

    def turn(x, times):
        return rotate(x, Rotation((times * angles[None]).cos(), (times * angles[None]).sin()))

    def score(i, j):
        return (turn(q, i) * turn(k, j)).sum(-1)

    close(turn(q, 1).norm(dim=-1), q.norm(dim=-1))
    close(score(3, 1), score(9, 7))
    assert (score(3, 1) - score(3, 2)).abs().max() > 1e-2
    pairs = torch.complex(q[..., :4], q[..., 4:]) * torch.polar(torch.ones(4), angles)
    close(turn(q, 1), torch.cat([pairs.real, pairs.imag], -1))


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_autocast_and_other_precisions_say_about_the_same(positions):
    model = model_of(positions=positions)
    batch = model.pack(documents())
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        close(model(batch).float(), expected, 0.1)
        assert model.forward_intermediates(batch)["blocks.2"].dtype == torch.float32  # what blocks add up to
    close(model.double()(batch).float(), expected, 1e-4)
    close(model.bfloat16()(batch).float(), expected, 0.2)


@pytest.mark.parametrize("positions", ["spatial+page", "rope"])
@torch.no_grad()
def test_blocks_compile_as_one_graph(positions):
    model = model_of(positions=positions, scopes="alternate:2")
    batch = model.pack(documents())
    layout = TokenLayout.of(batch, 1, model.config.block_scopes)
    x, rotation = model._embed(batch, layout, None)
    assert (rotation is not None) == (positions == "rope")

    def run(x, layout, rotation):
        for block in model.blocks:
            x = block(x, layout, rotation)
        return x

    close(torch.compile(run, fullgraph=True, backend="eager")(x, layout, rotation), run(x, layout, rotation))


@pytest.mark.parametrize("settings", [{"scopes": "alternate:2", "drop_path": 0.3}, {"positions": "rope"}], ids=str)
def test_checkpointing_gives_the_same_gradients_and_keeps_less(settings):
    model = model_of(**settings).train()
    batch = model.pack(documents())

    def gradients():
        model.zero_grad()
        torch.manual_seed(0)  # of stochastic depth
        model(batch).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    expected, kept = gradients(), measure_cost(model, batch).memory
    model.set_grad_checkpointing()
    assert all(torch.equal(one, other) for one, other in zip(gradients(), expected, strict=True))
    assert measure_cost(model, batch).memory < 0.5 * kept
    model.set_grad_checkpointing(False)
    assert measure_cost(model, batch).memory == kept


@torch.no_grad()
def test_an_exported_model_takes_other_documents():
    ink = {"stem": "ink", "patch_size": 16, "positions": "sincos2d+page", "pooling": "mean+std+first"}
    model = model_of(depth=2, scopes="alternate:2", num_registers=1, **ink)
    sides = [[(32, 48), (48, 32), (16, 16)], [(16, 48)], [(48, 48)] * 2], [[(32, 48)] * 3, [(16, 32)]]
    one, other = (model.pack([[torch.randn(3, *side) for side in pages] for pages in batch]) for batch in sides)
    pages, patches = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    sizes = [{0: patches}] * 4 + [{0: pages}] * 3 + [{0: torch.export.Dim.DYNAMIC}] + [None, {0: patches}]  # no words
    program = torch.export.export(model, (one,), dynamic_shapes=(sizes,), strict=False)
    exported = program.module(check_guards=False)  # torch's code for them trips over `page` and `page_index`
    for batch in (one, other):
        close(exported(batch), model(batch), 1e-4)


@torch.no_grad()
def test_a_model_that_reads_words_can_be_exported():
    model = model_of(words=64)
    batch = model.pack([[torch.randn(3, 32, 32)]])
    exported = torch.export.export(model, (batch,), strict=False).module(check_guards=False)
    close(exported(batch), model(batch), 1e-4)


def test_a_stem_of_ones_own():
    class Mean(Stem):
        def forward(self, patches):
            return patches.mean(1, keepdim=True).expand(-1, 32)

    model = DocViT(model_of().config, stem=Mean())
    assert not any(name.startswith("patch_embed") for name, _ in model.named_parameters())
    batch = model.pack(documents())
    found = model.forward_intermediates(batch, ["embed"])["embed"][token_indices(batch, 1)]
    close(found - model.positions.patches(batch), batch.patches.mean(1, keepdim=True).expand(-1, 32))
