"""Words at their addresses: what they add to tokens, and that packed sequences keep their promises with them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from docvit.documents.hashing import hash_ngrams
from docvit.documents.pages import PageStack
from docvit.documents.patches import pack
from docvit.documents.words import MAX_CHARACTERS, Words, clean_words
from docvit.model.variants import create_model

P, BUCKETS = 16, 512


def words(*placed):
    """Words from (text, x, y), the middles of boxes of .02 x .02."""
    boxes = [[x - 0.01, y - 0.01, x + 0.01, y + 0.01] for _, x, y in placed]
    return Words(tuple(text for text, _, _ in placed), np.array(boxes, np.float32).reshape(-1, 4), "text")


def page(seed, side=64):
    return np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)


def stack(*pages, name="document"):
    return PageStack(name, [page(i) for i in range(len(pages))], list(range(len(pages))), len(pages), list(pages))


LETTER = stack(words(("Dear", 0.1, 0.1), ("Sir", 0.9, 0.1)), words(("yours", 0.5, 0.9)))
BILL = stack(words(("Total", 0.1, 0.9), ("Total", 0.12, 0.9), ("42", 0.9, 0.9)))
SCAN = stack(Words(), Words())


def model_of(**settings):
    torch.manual_seed(0)
    settings = {
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
        "num_classes": 3,
        "grid": (4, 4),
        "page_size": 64,
    } | settings
    model = create_model("docvit_small_patch16", words=BUCKETS, **settings).eval()
    for layer in (model.words.to_pages, model.words.to_patches):
        if layer is not None:
            torch.nn.init.normal_(layer.weight)
    model.words.set_frequencies(torch.arange(BUCKETS) % 7, 10)
    return model


def packed(*stacks):
    return pack(stacks, P, words=True)


def bag(model, texts):
    """The vector of a bag of words, n-gram by n-gram in float64."""
    counts = Counter((hash_ngrams(texts)[0] % BUCKETS).tolist())
    weights = {b: (1 + np.log(n)) * float(model.words.idf[b]) for b, n in counts.items()}
    norm = np.sqrt(sum(w * w for w in weights.values()))
    table = model.words.embedding.weight.detach().double().numpy()
    return sum(w / norm * table[b] for b, w in weights.items())


def test_words_lie_on_the_patch_under_their_middle():
    batch = packed(LETTER)
    counts = batch.word_bounds.diff()
    at = {(int(p), int(r), int(c)): int(n) for p, r, c, n in zip(batch.page, batch.row, batch.col, counts, strict=True)}
    assert {address: n for address, n in at.items() if n} == {
        (0, 0, 0): len(hash_ngrams(["Dear"])[0]),
        (0, 0, 3): len(hash_ngrams(["Sir"])[0]),
        (1, 3, 2): len(hash_ngrams(["yours"])[0]),
    }


def test_a_patch_with_words_is_never_blank():
    white = PageStack("white", [np.full((64, 64, 3), 255, np.uint8)], [0], 1, [words(("x", 0.6, 0.4))])
    batch = packed(white)
    assert (batch.row.tolist(), batch.col.tolist()) == ([1], [2])
    assert pack([white], P).num_patches == 0


def test_what_tokens_get_is_the_weighted_sum_of_their_ngrams():
    model, batch = model_of(), packed(LETTER, BILL)
    at_patches, at_pages = model.words(batch)
    texts = [["Dear", "Sir"], ["yours"], ["Total", "Total", "42"]]
    expected = np.stack([bag(model, page) for page in texts]) @ model.words.to_pages.weight.detach().double().numpy().T
    np.testing.assert_allclose(at_pages.detach().numpy(), expected, atol=1e-5)
    (at,) = ((batch.page_of_patch == 2) & (batch.row == 3) & (batch.col == 0)).nonzero()[0].tolist()
    expected = bag(model, ["Total", "Total"]) @ model.words.to_patches.weight.detach().double().numpy().T
    np.testing.assert_allclose(at_patches[at].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("scopes", ["page", "document", "page-then-document:1"])
def test_packed_equals_one_by_one(scopes):
    model = model_of(scopes=scopes)
    together = model(packed(LETTER, SCAN, BILL))
    alone = torch.cat([model(packed(s)) for s in (LETTER, SCAN, BILL)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_model_given_words_starts_out_as_the_same_model_without():
    torch.manual_seed(0)
    plain = create_model("docvit_compact_patch32", num_classes=3, page_size=64)
    worded = create_model("docvit_compact_patch32", num_classes=3, page_size=64, words=BUCKETS)
    worded.load_state_dict(plain.state_dict(), strict=False)
    batch = pack([LETTER, BILL], 32, words=True)
    assert torch.equal(worded.eval()(batch), plain.eval()(batch))


def test_without_words_on_the_page_nothing_changes_to_the_bit():
    model = model_of()
    assert torch.equal(model(packed(SCAN)), model(pack([SCAN], P)))
    assert torch.equal(model(packed(LETTER).without_words()), model(pack([LETTER], P)))  # no blank patches here
    assert not torch.allclose(model(packed(LETTER)), model(pack([LETTER], P)))


@pytest.mark.parametrize(("positions", "counts"), [("spatial+page", True), ("page-independent", False)])
def test_the_order_of_pages_counts_under_document_global_positions_alone(positions, counts):
    model = model_of(positions=positions, scopes="document")
    batch = packed(LETTER)
    turned = packed(PageStack("turned", LETTER.pages[::-1], [0, 1], 2, LETTER.words[::-1]))
    assert torch.allclose(model(batch), model(turned), atol=1e-5) is not counts


def test_a_dropped_patch_drops_its_words():
    model, batch = model_of(), packed(LETTER)
    keep = (batch.page != 0) | (batch.col != 3)
    left = batch.select(keep)
    assert torch.equal(
        left.words, torch.cat([batch.words[: batch.word_bounds[3]], batch.words[batch.word_bounds[4] :]])
    )
    same = pack([stack(words(("Dear", 0.1, 0.1)), words(("yours", 0.5, 0.9)))], P, words=True).select(keep)
    torch.testing.assert_close(model(left), model(same))


def test_moving_a_batch_takes_its_words_along():
    moved = packed(LETTER).to("meta")
    assert moved.words.device.type == "meta"
    assert moved.word_bounds.device.type == "cpu"


def test_without_blocks_class_tokens_alone_get_words():
    model = create_model("docvit_linear_patch32", num_classes=3, words=BUCKETS)
    assert model.words.to_patches is None


def test_embeddings_do_not_decay():
    assert "words.embedding.weight" in model_of().no_weight_decay()


def test_frequencies_are_those_of_scikit_learn():
    from sklearn.feature_extraction.text import TfidfTransformer

    frequencies = torch.tensor([0, 1, 3, 10])
    model = create_model("docvit_linear_patch32", num_classes=2, words=4)
    assert not model.words.counted
    model.words.set_frequencies(frequencies, 10)
    assert model.words.counted
    documents = np.array([[i < n for n in frequencies.tolist()] for i in range(10)], float)
    np.testing.assert_allclose(model.words.idf.numpy(), TfidfTransformer().fit(documents).idf_, rtol=1e-6)


NOWHERE = [float("nan"), 0.1, 0.2, 0.2]


@pytest.mark.parametrize(
    ("texts", "boxes", "kept", "cell"),
    [
        (["Total"] * 3, [NOWHERE, [0.6, 0.1, 0.6, 0.2], [0.1, 0.1, float("inf"), 0.2]], [], None),  # no boxes
        (["Total", "due"], [NOWHERE, [0.8, 0.8, 1.0, 1.0]], ["due"], (3, 3)),
        (["Total"], [[-50.0, 0.3, 80.0, 0.4]], ["Total"], (1, 2)),  # wider than the page: at the middle of what is seen
        (["Total"], [[1.0, 1.0, 2.0, 2.0]], [], None),  # beyond the page
        (["a"] * 1_000_000, [[0.6, 0.1, 0.61, 0.11]] * 1_000_000, ["a"] * MAX_CHARACTERS, (0, 2)),
        (["x" * 1_000, "ﬁn\u200bal"], [[0.6, 0.1, 0.61, 0.11]] * 2, ["x" * 40, "final"], (0, 2)),
        (["\ue000", "\u202e", "\ud800"], [[0.6, 0.1, 0.61, 0.11]] * 3, [], None),  # nothing that can be read
        (["שלום", "請求書"], [[0.1, 0.6, 0.11, 0.61]] * 2, ["שלום", "請求書"], (2, 0)),
    ],
)
def test_a_text_layer_that_lies_gives_tokens_what_is_left_of_it(texts, boxes, kept, cell):
    model = model_of()
    batch = packed(stack(clean_words(texts, np.array(boxes), "text")))
    assert len(batch.words) == len(hash_ngrams(kept)[0])
    at_patches, at_pages = (tokens.detach().numpy() for tokens in model.words(batch))
    page_map, patch_map = (m.weight.detach().double().numpy() for m in (model.words.to_pages, model.words.to_patches))
    expected = bag(model, kept) if kept else np.zeros(page_map.shape[1])
    np.testing.assert_allclose(at_pages[0], page_map @ expected, atol=1e-5)
    rows = list(zip(batch.row.tolist(), batch.col.tolist(), strict=True))
    for (row, col), token in zip(rows, at_patches, strict=True):
        np.testing.assert_allclose(token, patch_map @ expected if (row, col) == cell else 0, atol=1e-5)
    assert model(batch).isfinite().all()


def test_the_words_of_the_whole_document_are_the_last_part_of_its_feature():
    model, plain = model_of(document_words=5), model_of()
    torch.nn.init.normal_(model.words.of_documents.weight)
    assert model.num_features == plain.num_features + 5
    batch = packed(LETTER, SCAN, BILL)
    with torch.inference_mode():
        features = model.forward_features(batch)
        document = model.forward_head(features, pre_logits=True)[:, -5:]
        alone = [model.forward_features(packed(stack(words))) for words in LETTER.words]
    for row, seen in zip(document, (LETTER, SCAN, BILL), strict=True):
        counts = Counter((hash_ngrams([text for page in seen.words for text in page.texts])[0] % BUCKETS).tolist())
        weights = {i: (1 + np.log(count)) * float(model.words.idf[i]) for i, count in counts.items()}
        norm = np.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        table = model.words.of_documents.weight.detach()
        expected = sum((weight / norm * table[i] for i, weight in weights.items()), torch.zeros(5))
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)
    direct = torch.cat([own.words[0] for own in alone])  # of its two pages as documents of their own
    with torch.inference_mode():
        pages, without = model.forward_pages(features)[:2], model.head(model.alone(features.pages[:2]))
        torch.testing.assert_close(pages, without + direct @ model.head.weight[:, -5:].T)
    assert not torch.allclose(pages, without)


def test_the_table_of_documents_needs_words():
    with pytest.raises(ValueError, match="document_words 5 needs words"):
        create_model("docvit_small_patch16", document_words=5)
