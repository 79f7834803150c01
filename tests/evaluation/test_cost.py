"""Sizes and costs of attention: those on paper against those of modules that run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from docvit.documents.pages import PageStack
from docvit.documents.words import Words
from docvit.evaluation.cost import attention_shapes, inspect_document, measure_cost, patch_counts, predict_cost
from docvit.model.attention import Segments
from docvit.model.blocks import Attention
from docvit.model.config import POOLINGS, STEMS, DocViTConfig
from docvit.model.docvit import DocViT

SMALL = {"embed_dim": 64, "depth": 3, "num_heads": 2, "patch_size": 16, "in_chans": 1, "num_classes": 3}
SENTENCE = ["The", "sun", "sets", "in", "the", "west", "every", "evening"]


class FullWidthAttention(nn.Module):
    """Self-attention whose heads each have a width of their own, one layer a head, as drawn in textbooks."""

    def __init__(self, dim, heads, head_dim):
        super().__init__()
        self.query, self.key, self.value = (
            nn.ModuleList(nn.Linear(dim, head_dim) for _ in range(heads)) for _ in range(3)
        )
        self.output = nn.Linear(heads * head_dim, dim)

    def forward(self, x):
        q, k, v = (torch.stack([layer(x) for layer in part]) for part in (self.query, self.key, self.value))
        return self.output(rearrange(F.scaled_dot_product_attention(q, k, v), "h t d -> t (h d)"))


class Softmaxes(TorchDispatchMode):
    """Collects the shapes of what softmax gives, whoever calls it."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "softmax" in str(function):
            self.shapes.append(tuple(result.shape))
        return result


def observed(module, *inputs):
    """{linear layer: (its calls, tokens, in, out)} and the score matrices (heads, rows, columns) of one run."""
    seen = {}

    def note(name):
        def hook(layer, arguments, result):
            calls = seen[name][0] if name in seen else 0
            seen[name] = (calls + 1, arguments[0].shape[0], arguments[0].shape[1], result.shape[1])

        return hook

    handles = [m.register_forward_hook(note(n)) for n, m in module.named_modules() if isinstance(m, nn.Linear)]
    with sdpa_kernel(SDPBackend.MATH), Softmaxes() as softmaxes:  # the one kernel that writes its scores down
        module(*inputs)
    for handle in handles:
        handle.remove()
    return seen, [shape[-3:] for shape in softmaxes.shapes]


# --- the shapes of one layer ---


def test_the_worked_example_with_heads_of_full_width():
    s = attention_shapes(len(SENTENCE), 100, 4, head_dim=100)
    assert (s.positions, s.heads) == (1, 4)
    assert s.query == s.key == s.value == (100, 100)
    assert s.scores == (8, 8)
    assert s.concat == (8, 400)
    assert s.output == (400, 100)
    layers, scores = observed(FullWidthAttention(100, 4, 100), torch.randn(8, 100))
    for name in ("query", "key", "value"):
        assert [layers[f"{name}.{head}"][2:] for head in range(s.heads)] == [getattr(s, name)] * 4
    assert scores == [(s.heads, *s.scores)]
    assert layers["output"] == (1, *s.concat, s.output[1])
    assert layers["output"][2:] == s.output


def test_the_worked_example_with_heads_that_split_the_width():
    s = attention_shapes(len(SENTENCE), 100, 4)
    assert s.query == s.key == s.value == (100, 25)
    assert (s.scores, s.concat, s.output) == ((8, 8), (8, 100), (100, 100))
    module = Attention(100, 4)
    layers, scores = observed(module, torch.randn(8, 100), Segments.of(torch.tensor([0, 8])))
    assert layers["qkv"] == (1, 8, 100, 3 * s.heads * s.query[1])  # all heads' layers side by side in one
    assert scores == [(s.heads, *s.scores)]
    assert layers["proj"] == (1, *s.concat, s.output[1])
    assert tuple(module.proj.weight.T.shape) == s.output


def test_positions_are_added_once_however_many_blocks_there_are(monkeypatch):
    model = DocViT(DocViTConfig(**SMALL | {"depth": 5})).eval()
    calls, original = [], model.positions.patches
    monkeypatch.setattr(model.positions, "patches", lambda batch: calls.append(1) or original(batch))
    _, scores = observed(model, model.pack([[torch.randn(1, 32, 48)]]))
    assert len(calls) == attention_shapes(7, 64, 2).positions
    assert scores == [(2, *attention_shapes(7, 64, 2).scores)] * 4 + [(2, 1, 7)]  # at last the class token alone


@pytest.mark.parametrize(
    ("arguments", "said"), [((8, 100, 3), "3 heads"), ((0, 100, 4), "tokens"), ((8, 9, 3, 0), "head_dim")]
)
def test_sizes_that_cannot_be(arguments, said):
    with pytest.raises(ValueError, match=said):
        attention_shapes(*arguments)


# --- the cost of a model on a batch ---


def page(rows, cols, blank=0, channels=1):
    """A page of noise whose last `blank` patches are white."""
    pixels = torch.randn(channels, rows * 16, cols * 16)
    for i in range(rows * cols - blank, rows * cols):
        row, col = divmod(i, cols)
        pixels[:, row * 16 : row * 16 + 16, col * 16 : col * 16 + 16] = 1
    return pixels


def documents(channels=1):
    """Pages of several sizes, with and without blank patches; one is blank altogether."""
    return [
        [page(4, 3, 5, channels), page(4, 5, 3, channels), page(2, 2, 4, channels)],
        [page(4, 3, 0, channels)] * 2,
    ]


def with_words(pages):
    """The pages with a few words each, some of them twice."""
    boxes = np.array([[0.1, 0.1, 0.2, 0.2], [0.1, 0.1, 0.3, 0.2], [0.1, 0.6, 0.2, 0.7]], np.float32)
    words = [Words(("amount", "due", f"amount{i}"), boxes, "text") for i in range(len(pages))]
    return PageStack("a.pdf", pages, list(range(len(pages))), len(pages), words)


SETTINGS = [
    *({"scopes": scopes} for scopes in ("page", "document", "page-then-document:1", "alternate:2")),
    *({"stem": stem, "scopes": "alternate:2"} for stem in STEMS),
    {"num_registers": 3, "mlp_ratio": 2.0, "init_values": 0.1},
    {"in_chans": 3, "num_classes": 0},
    {"in_chans": 3, "stem": "conv", "num_heads": 4},
    {"positions": "rope"},
    {"positions": "rope", "scopes": "page"},
    {"positions": "sincos"},
    {"depth": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_predicted_and_measured_costs_agree(settings):
    model = DocViT(DocViTConfig(**SMALL | settings)).eval()
    batch = model.pack(documents(model.config.in_chans))
    predicted, measured = predict_cost(model.config, batch), measure_cost(model, batch)
    assert predicted.flops == measured.flops
    assert predicted.memory == pytest.approx(measured.memory, rel=0.05)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_without_blocks_predicted_and_measured_costs_agree_but_for_indices(pooling):
    settings = {"depth": 0, "stem": "ink", "positions": "sincos2d+page", "pooling": pooling}
    model = DocViT(DocViTConfig(**SMALL | settings)).eval()
    batch = model.pack(documents())
    predicted, measured = predict_cost(model.config, batch), measure_cost(model, batch)
    assert predicted.flops == pytest.approx(measured.flops, rel=0.05)
    indices = 8 * (predicted.tokens + 2 * batch.num_pages)  # page order, class tokens, documents
    assert predicted.memory == pytest.approx(measured.memory - indices, rel=0.05)


@pytest.mark.parametrize("settings", [{}, {"depth": 0, "stem": "ink", "positions": "sincos2d+page"}], ids=str)
def test_the_cost_of_words_is_what_they_add_to_the_measured_cost(settings):
    model = DocViT(DocViTConfig(**SMALL | settings, words=512, word_dim=16)).eval()
    stacks = [with_words([page(4, 3, 5), page(4, 5, 3), page(2, 2, 4)]), with_words([page(4, 3)])]
    batch = model.pack(stacks)
    assert len(batch.words) > 200
    without = DocViT(DocViTConfig(**SMALL | settings)).eval()
    cost, plain = predict_cost(model.config, batch), predict_cost(without.config, batch)
    measured, measured_plain = measure_cost(model, batch), measure_cost(without, batch)
    rows = batch.num_pages + (batch.num_patches if model.config.reads_patches else 0)
    assert cost.word_flops == cost.flops - plain.flops == measured.flops - measured_plain.flops == 2 * rows * 16 * 64
    assert cost.memory - plain.memory == measured.memory - measured_plain.memory
    assert plain.word_flops == 0
    undropped = predict_cost(model.config, batch, "undropped")
    assert undropped.word_flops == 2 * (batch.num_pages + (48 if model.config.reads_patches else 0)) * 16 * 64


def test_score_matrices_by_hand_and_as_they_are_computed():
    model = DocViT(DocViTConfig(**SMALL, scopes="page-then-document:1")).eval()
    batch = model.pack(documents())
    cost = predict_cost(model.config, batch)
    # patches of the pages and a class token each; then the two documents
    assert cost.scores == {"page": (8, 18, 1, 13, 13), "document": (27, 26)}
    assert cost.blocks == {"page": 2, "document": 1}
    assert cost.tokens == 53
    entries = 2 * (8**2 + 18**2 + 1 + 13**2 + 13**2) + 3 * 27 + 2 * 26  # the last block: class tokens by tokens
    assert cost.score_memory == 4 * 2 * entries
    with sdpa_kernel(SDPBackend.MATH), Softmaxes() as softmaxes:
        model(batch)
    assert 4 * sum(np.prod(shape) for shape in softmaxes.shapes) == cost.score_memory


@pytest.mark.parametrize("scopes", ["page", "document"])
def test_what_padding_and_blank_patches_would_cost_is_what_they_do_cost(scopes):
    model = DocViT(DocViTConfig(**SMALL, scopes=scopes)).eval()
    batch = model.pack(documents())
    assert patch_counts(batch) == [7, 17, 0, 12, 12]
    assert patch_counts(batch, "undropped") == [12, 20, 4, 12, 12]
    assert patch_counts(batch, "padded") == [20] * 5
    whole = model.pack(documents(), drop_blank=False)
    padded = [[F.pad(p, (0, 80 - p.shape[2], 0, 64 - p.shape[1]), value=1.0) for p in pages] for pages in documents()]
    for layout, same in (("undropped", whole), ("padded", model.pack(padded, drop_blank=False))):
        assert predict_cost(model.config, batch, layout) == predict_cost(model.config, same)
        assert predict_cost(model.config, batch, layout).flops == measure_cost(model, same).flops
    with pytest.raises(ValueError, match="no layout 'odd'"):
        patch_counts(batch, "odd")


def test_measuring_keeps_nothing_and_changes_nothing():
    model = DocViT(DocViTConfig(**SMALL)).eval()
    batch = model.pack(documents())
    with torch.no_grad():
        before = model(batch)
        assert measure_cost(model, batch) == measure_cost(model, batch)
        assert torch.equal(model(batch), before)
    assert all(p.grad is None for p in model.parameters())


# --- a document ---


def test_an_inspection():
    model = DocViT(DocViTConfig(**SMALL, scopes="alternate:2", page_size=64)).eval()
    pages = [np.full((64, 48), 255, np.uint8) for _ in range(3)]
    for i, drawn in enumerate(pages):
        drawn[8 : 16 * (i + 2), 8:40] = np.random.default_rng(i).integers(0, 255, (16 * (i + 2) - 8, 32))
    found = inspect_document(model, PageStack("a.pdf", pages, [0, 3, 6], 7))
    assert [(p.page, p.grid, p.kept, p.blank) for p in found.pages] == [
        (1, (4, 3), 6, 6),
        (4, (4, 3), 9, 3),
        (7, (4, 3), 12, 0),
    ]
    assert [cost.scopes for cost in found.costs] == ["page", "document", "alternate:2"]
    for cost in found.costs:
        assert cost.predicted.flops == cost.measured.flops
        assert cost.predicted.tokens == 27 + 3
        assert cost.undropped == cost.padded  # pages of one size
        assert cost.undropped.tokens == 36 + 3
    per_page, whole, own = (cost.measured.flops for cost in found.costs)
    assert per_page < own < whole
    assert found.attention == attention_shapes(30, 64, 2)
    values = json.loads(json.dumps(found.as_dict()))
    assert values["costs"][0]["predicted"]["scores"] == {"page": [7, 10, 13]}
    assert set(values["costs"][0]["measured"]) == {"flops", "memory"}
    assert values["num_pages"] == 7


def test_the_scopes_of_the_model_are_listed_once():
    model = DocViT(DocViTConfig(**SMALL, scopes="page", page_size=64)).eval()
    stack = PageStack("a.pdf", [np.zeros((64, 48), np.uint8)], [0], 1)
    assert [cost.scopes for cost in inspect_document(model, stack).costs] == ["page", "document"]


def test_an_inspection_counts_the_words_of_pages_if_the_model_reads_them():
    stack = with_words([np.random.default_rng(i).integers(0, 255, (64, 48), np.uint8) for i in range(2)])
    for words, expected, source in ((64, [3, 3], "text"), (0, [None, None], None)):
        found = inspect_document(DocViT(DocViTConfig(**SMALL, page_size=64, words=words)), stack)
        assert [p.words for p in found.pages] == expected
        assert found.words_from == source
        values = json.loads(json.dumps(found.as_dict()))
        assert [p["words"] for p in values["pages"]] == expected
        assert [bool(cost["predicted"]["word_flops"]) for cost in values["costs"]] == [words > 0] * 2
        assert all(cost.predicted.flops == cost.measured.flops for cost in found.costs)
