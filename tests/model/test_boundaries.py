"""The head that finds where documents begin, and the ties between pages that it reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer

from docvit.documents.hashing import hash_ngrams
from docvit.documents.pages import PageStack
from docvit.documents.patches import pack
from docvit.documents.words import Words
from docvit.model.boundaries import GAPS, shift
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError

P, ROWS, COLS, BUCKETS = 16, 8, 4, 4096
CONFIG = DocViTConfig(
    embed_dim=16, depth=0, num_heads=2, patch_size=P, page_size=P * ROWS, in_chans=1, num_classes=3, stem="ink",
    scopes="page", words=BUCKETS, boundaries=8,
)  # fmt: skip
TOP, BOTTOM, MIDDLE = 0.03, 0.97, 0.5


def words(*placed):
    texts = tuple(text for text, _ in placed)
    boxes = np.array([[0.3, y - 0.01, 0.4, y + 0.01] for _, y in placed], np.float32).reshape(-1, 4)
    return Words(texts, boxes, "text")


def stack(pages, of_words=()):
    return PageStack("x", pages, list(range(len(pages))), len(pages), list(of_words))


def page(seed, mark=None):
    """Noise, on which a band of rows may be drawn as another seed draws it."""
    pixels = np.random.default_rng(seed).integers(0, 255, (P * ROWS, P * COLS), dtype=np.uint8)
    if mark is not None:
        rows, other = mark
        pixels[rows] = page(other)[rows]
    return pixels


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return DocViT(CONFIG).eval()


def ties(model, *stacks):
    batch = pack(stacks, P, channels=1, mean=CONFIG.mean, std=CONFIG.std, words=True)
    return model.boundaries.ties(batch, model.words).unbind(1)


def test_what_is_the_same_on_two_pages_has_cosine_1_in_its_band(model):
    title, foot = slice(0, P), slice(P * (ROWS - 1), P * ROWS)
    pages = [page(1), page(2, (title, 1)), page(3), page(4, (foot, 3))]
    one = ties(model, stack(pages))[0]
    whole, top, bottom = one[:, 0], one[:, 3], one[:, 6]
    assert top[1] == pytest.approx(1, abs=1e-5)
    assert top[2:].max() < 0.99
    assert bottom[3] == pytest.approx(1, abs=1e-5)
    assert bottom[:3].max() < 0.99
    assert whole.max() < 0.995


def test_cosines_of_words_are_those_of_tf_idf(model):
    texts = ["alpha beta gamma beta", "beta delta alpha", "omega psi"]
    counts = np.zeros((3, BUCKETS))
    for row, text in zip(counts, texts, strict=True):
        np.add.at(row, hash_ngrams(text.split())[0] % BUCKETS, 1)
    expected = TfidfTransformer(sublinear_tf=True, use_idf=False).fit_transform(counts).toarray()
    of_words = [words(*((word, MIDDLE) for word in text.split())) for text in texts]
    one, two, _ = ties(model, stack([page(i) for i in range(3)], of_words))
    assert one[1:, 1].tolist() == pytest.approx([expected[0] @ expected[1], expected[1] @ expected[2]], abs=1e-5)
    assert two[2, 1].item() == pytest.approx(expected[0] @ expected[2], abs=1e-5)
    assert one[:, 2].tolist() == [0, 1, 1]  # both have words
    assert not one[:, [4, 5, 7, 8]].any()  # none of them at the top or at the bottom


def test_page_numbers_that_go_on_are_seen_at_the_edges_alone(model):
    numbered = [words((str(n), y)) for n, y in ((4, TOP), (5, BOTTOM), (1, TOP), (2, MIDDLE), (3, TOP))]
    one, two, three = ties(model, stack([page(i) for i in range(5)], numbered))
    goes_on, both, is_one = 9, 10, 11
    assert one[:, goes_on].tolist() == [0, 1, 0, 0, 0]
    assert two[:, goes_on].tolist() == [0, 0, 0, 0, 1]  # 1, then 3 two pages on
    assert one[:, both].tolist() == [0, 1, 1, 0, 0]
    assert one[:, is_one].tolist() == [0, 0, 1, 0, 0]
    assert not three[:, goes_on].any()


@pytest.mark.parametrize("number", [7, 42, 999])
def test_numbers_of_every_length_are_known(model, number):
    said = words((str(number), TOP), ("1995", TOP), (f"{number}a", TOP))
    batch = pack([stack([page(0)], [said])], P, channels=1, words=True)
    assert (model.boundaries._numbers(batch, [batch])[0].nonzero() + 1).tolist() == [[number]]


def test_pages_of_different_shapes_are_not_alike(model):
    one = ties(model, stack([page(0), page(1), page(2)[: P * 4]]))[0]
    assert one[:, 12].tolist() == [0, 1, 0]


def test_nothing_is_read_across_documents(model):
    parts = [stack([page(i) for i in range(3)], [words(("same", TOP))] * 3), stack([page(9)] * 2, [words()] * 2)]
    together = ties(model, *parts)
    for gap, of_all, *alone in zip(GAPS, together, *(ties(model, part) for part in parts), strict=True):
        torch.testing.assert_close(of_all, torch.cat(alone), msg=str(gap))
    batch = model.pack(parts)
    logits = model.forward_boundaries(model.forward_features(batch), batch)
    own = [model.forward_boundaries(model.forward_features(b), b) for b in (model.pack([part]) for part in parts)]
    torch.testing.assert_close(logits, torch.cat(own), atol=1e-5, rtol=1e-4)


def test_shifted_rows_stay_in_their_document():
    x, document = torch.arange(1, 6), torch.tensor([0, 0, 0, 1, 1])
    assert shift(x, -1, document).tolist() == [0, 1, 2, 0, 4]
    assert shift(x, 2, document).tolist() == [3, 0, 0, 0, 0]
    assert shift(x, 9, document).tolist() == [0] * 5


def test_the_head_reads_page_tokens(model):
    batch = model.pack([stack([page(i) for i in range(3)])])
    features = model.forward_features(batch)
    other = features._replace(pages=features.pages + torch.randn_like(features.pages))
    assert not torch.allclose(model.forward_boundaries(features, batch), model.forward_boundaries(other, batch))


def test_a_packet_of_one_page_can_be_trained_on():
    model = DocViT(CONFIG).train()
    model.boundaries.requires_grad_(True)
    batch = model.pack([stack([page(0)])])
    model.forward_boundaries(model.forward_features(batch), batch).sum().backward()
    assert model.boundaries.mlp[0].weight.grad.isfinite().all()


def test_a_model_without_the_head_says_how_to_get_one():
    model = DocViT(DocViTConfig(embed_dim=16, depth=1, num_heads=2, num_classes=3))
    batch = model.pack([[np.zeros((32, 32, 3), np.uint8)]])
    with pytest.raises(ModelError, match="docvit train --packets"):
        model.forward_boundaries(model.forward_features(batch), batch)


def test_the_head_changes_no_other_weight_and_is_saved(tmp_path):
    torch.manual_seed(3)
    plain = DocViT(DocViTConfig.from_dict(CONFIG.as_dict() | {"boundaries": 0})).state_dict()
    torch.manual_seed(3)
    model = DocViT(CONFIG)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in plain.items())
    model.save_pretrained(tmp_path)
    saved = DocViT.from_pretrained(tmp_path).state_dict()
    assert saved.keys() - plain.keys()
    assert all(torch.equal(saved[n], v) for n, v in model.state_dict().items())
