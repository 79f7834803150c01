"""Masked pre-training: masked patches stay hidden, and the targets that are predicted for them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TINY

from docvit.data.dataset import UNLABELLED, DocumentBatch
from docvit.documents.pages import PageStack
from docvit.documents.words import Words
from docvit.model.config import POSITIONS, DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.stems import InkStem
from docvit.training.masked import PretrainRecipe, build_masked
from docvit.training.masked_model import MaskedDocViT, Target, WordTarget, draw_mask, reconstruction_loss

CONFIG = DocViTConfig(**TINY | {"drop_path": 0.2, "num_registers": 1}, num_classes=0)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def masked_model(target="pixels", **settings):
    return MaskedDocViT(DocViT(replace(CONFIG, **settings)), target)


def pages(*shapes):
    return [torch.rand(1, *shape) for shape in shapes]


@pytest.fixture
def batch():
    """Documents of two pages and of one, of different sizes."""
    return masked_model().encoder.pack([pages((64, 48), (48, 64)), pages((64, 64))])


def as_batch(sequence):
    labels = torch.full((len(sequence),), UNLABELLED)
    return DocumentBatch(sequence, labels, torch.arange(len(sequence)))


def test_without_blocks_there_is_nothing_to_pretrain():
    with pytest.raises(ValueError, match="nothing to pre-train"):
        masked_model(depth=0, stem="ink")


# --- what the model sees ---


@pytest.mark.parametrize("stem", ["linear", "ink"])
@pytest.mark.parametrize("training", [True, False])
def test_masked_patches_do_not_reach_the_prediction(batch, stem, training):
    model = masked_model(stem=stem).train(training)
    masked = draw_mask(batch.num_patches, 0.75)

    def predict(patches):
        torch.manual_seed(1)  # of stochastic depth
        return model(replace(batch, patches=patches), masked)

    expected = predict(batch.patches)
    hidden, shown = batch.patches.clone(), batch.patches.clone()
    hidden[masked] = torch.rand_like(hidden[masked]) * 9
    shown[~masked] = torch.rand_like(shown[~masked]) * 9
    assert torch.equal(predict(hidden), expected)
    assert not torch.allclose(predict(shown), expected, atol=1e-3)


def test_the_encoder_is_the_model_on_the_kept_patches(batch, monkeypatch):
    model = masked_model().eval()
    masked = draw_mask(batch.num_patches, 0.5)
    handed = []
    monkeypatch.setattr(model.decoder, "forward", lambda kept, *_: handed.append(kept) or kept)
    model(batch, masked)
    kept = batch.select(~masked)
    first = (kept.page_bounds[:-1] + 2 * torch.arange(3)).tolist()  # a class token and a register a page
    torch.testing.assert_close(handed[0][first], model.encoder.forward_features(kept).pages)


def test_visible_tokens_keep_their_addresses(batch):
    """Permuting the pages of a document, addresses and all, permutes the predictions and changes nothing else."""
    model = masked_model().eval()
    masked = draw_mask(batch.num_patches, 0.5)
    first = torch.arange(batch.num_patches) < batch.page_bounds[1]
    second = batch.page_of_patch == 1
    rest = batch.page_of_patch == 2
    order = torch.cat([part.nonzero()[:, 0] for part in (second, first, rest)])
    counts = batch.page_bounds.diff()[[1, 0, 2]]
    swapped = replace(
        batch,
        **{name: getattr(batch, name)[order] for name in ("patches", "page", "row", "col")},
        **{name: getattr(batch, name)[[1, 0, 2]] for name in ("grids", "page_index")},
        page_bounds=torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)]),
    )
    expected = torch.zeros(batch.num_patches, model.target.size)
    expected[masked] = model(batch, masked)
    torch.testing.assert_close(model(swapped, masked[order]), expected[order][masked[order]])


def test_other_pages_help_and_other_documents_do_not(batch):
    model = masked_model().eval()
    masked = draw_mask(batch.num_patches, 0.5)
    page = batch.page_of_patch
    of_first = page[masked] == 0

    def changed(at):
        patches = torch.where((page == at)[:, None], torch.rand_like(batch.patches) * 9, batch.patches)
        return model(replace(batch, patches=patches), masked)[of_first]

    alone = model(batch, masked)[of_first]
    assert not torch.allclose(changed(1), alone, atol=1e-3)
    torch.testing.assert_close(changed(2), alone)


def test_masked_patches_differ_by_their_addresses_alone(batch):
    model = masked_model(positions="page-independent", scopes="page").eval()
    predicted = model(batch, torch.ones(batch.num_patches, dtype=torch.bool))  # nothing is shown
    assert torch.cdist(predicted, predicted).add(torch.eye(len(predicted))).min() > 1e-4


def test_the_same_cell_of_two_pages_is_predicted_by_its_page_index():
    model = masked_model(positions="page-independent", scopes="page").eval()
    twins = model.encoder.pack([pages((64, 64), (64, 64))])
    first, second = model(twins, torch.ones(twins.num_patches, dtype=torch.bool)).chunk(2)  # nothing is visible
    assert (first - second).abs().amax(1).min() > 1e-4


def test_class_tokens_have_their_page_index_in_the_decoder_too(batch):
    decoder = masked_model().eval().decoder
    masked = draw_mask(batch.num_patches, 0.5)
    kept = torch.randn(len(batch.select(~masked).patches) + 2 * batch.num_pages, CONFIG.embed_dim)
    addresses = decoder.positions.patches(batch)
    decoder.positions.patches = lambda _: addresses  # of patches, whatever becomes of their pages
    before = decoder(kept, batch, masked)
    after = decoder(kept, replace(batch, page_index=batch.page_index + 1), masked)
    assert not torch.allclose(before, after, atol=1e-4)


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_scheme_can_be_pretrained(batch, positions):
    model = masked_model(positions=positions, scopes="alternate:2", init_values=1e-5)
    reconstruction_loss(0.75)(model, as_batch(batch), 0.0)["loss"].backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert trained == []


def test_tables_and_tokens_do_not_decay():
    names = masked_model().no_weight_decay()
    assert {"encoder.positions.page", "decoder.positions.page", "encoder.cls_token", "encoder.reg_token"} <= names
    own = dict(masked_model().named_parameters())
    assert names <= set(own)


# --- the mask, the targets, the loss ---


def test_the_mask_hides_its_share_and_at_least_one():
    for count, share, hidden in ((100, 0.75, 75), (8, 0.5, 4), (3, 0.1, 1), (1, 0.5, 1), (0, 0.5, 0)):
        assert int(draw_mask(count, share).sum()) == hidden
    assert not torch.equal(draw_mask(100, 0.5), draw_mask(100, 0.5))


def test_pixels_are_normalised_over_the_patch():
    patches = torch.rand(5, 256) * 3 - 1
    x = patches.double().numpy()
    expected = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(Target("pixels", CONFIG)(patches), expected, rtol=1e-3, atol=1e-4)


def test_ink_targets_are_the_stem_s_features_normalised_over_patches():
    patches = torch.rand(50, 256) * torch.rand(50, 1)
    target = Target("ink", CONFIG)
    x = InkStem(1, 16, 8).describe(patches).double().numpy()
    np.testing.assert_allclose(target(patches), (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6), rtol=1e-2, atol=1e-3)
    assert target.size == x.shape[1]
    assert not any(p.requires_grad for p in target.parameters())


def test_the_target_goes_with_the_stem():
    recipe = PretrainRecipe(model="docvit_small_patch16", settings=TINY)
    for stem, ink in (("linear", False), ("ink", True)):
        assert (build_masked(replace(recipe, settings=TINY | {"stem": stem})).target.ink is not None) == ink
    assert build_masked(replace(recipe, target="ink")).target.ink is not None


@pytest.mark.parametrize("target", ["pixels", "ink"])
def test_predicting_the_mean_costs_one(batch, target):
    model = masked_model(target)
    torch.nn.init.zeros_(model.decoder.predict.weight)
    loss = reconstruction_loss(0.75)(model, as_batch(batch), 0.0)["loss"]
    assert loss.item() == pytest.approx(1, abs=0.05)  # a little less: what hardly varies is not blown up


@pytest.mark.parametrize("target", ["pixels", "ink"])
@pytest.mark.parametrize("stem", ["linear", "ink"])
def test_blank_pages_and_single_patches_are_no_trouble(batch, stem, target):
    model = masked_model(target, stem=stem)
    blank = model.encoder.pack([[torch.zeros(1, 64, 64)]])
    single = batch.select(torch.arange(batch.num_patches) == 5)
    for sequence in (blank, single):
        loss = reconstruction_loss(0.75)(model, as_batch(sequence), 0.0)["loss"]
        loss.backward()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- words

BUCKETS = 64


def word_model(**settings):
    """A model whose words count from the start."""
    model = masked_model(words=BUCKETS, **settings)
    for layer in (model.encoder.words.to_pages, model.encoder.words.to_patches):
        torch.nn.init.normal_(layer.weight)
    return model


def said(*texts):
    """These words, from the upper left to the lower right corner of a page."""
    middles = np.linspace(0.1, 0.9, len(texts))
    boxes = np.stack([middles - 0.01, middles - 0.01, middles + 0.01, middles + 0.01], 1).astype(np.float32)
    return Words(texts, boxes, "text")


@pytest.fixture
def worded():
    """A document of two pages with words, and one of a page without."""
    drawn = [np.random.default_rng(i).integers(0, 255, (64, 64), dtype=np.uint8) for i in range(3)]
    letter = [said("Dear", "Sir", "or", "Madam"), said("yours", "sincerely", "Dear")]
    stacks = [PageStack("a", drawn[:2], [0, 1], 2, letter), PageStack("b", drawn[2:], [0], 1, [Words()])]
    return word_model().encoder.pack(stacks)


def other_words(batch, where):
    """The batch with other n-grams on the patches where `where` (T,) is true."""
    changed = torch.repeat_interleave(where, batch.word_bounds.diff())
    assert changed.any()
    return replace(batch, words=torch.where(changed, batch.words + 7, batch.words))


@pytest.mark.parametrize("scopes", ["page", "document"])
def test_words_of_masked_patches_do_not_reach_the_prediction(worded, scopes):
    model = word_model(scopes=scopes).eval()
    masked = torch.arange(worded.num_patches) % 3 == 0
    expected = model(worded, masked)
    assert torch.equal(model(other_words(worded, masked), masked), expected)
    assert not torch.allclose(model(other_words(worded, ~masked), masked), expected, atol=1e-3)


def test_word_targets_are_projected_bags_of_the_patches_that_have_words(worded):
    target = word_model().word_target
    bags = [worded.words[a:b] % BUCKETS for a, b in pairwise(worded.word_bounds.tolist()) if a < b]
    x = np.stack([target.projection.double().numpy()[bag].sum(0) for bag in bags])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
    found = target(worded.words, torch.tensor([len(bag) for bag in bags]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(WordTarget(BUCKETS).projection, target.projection)  # in every run
    assert not any("word_target" in name for name in word_model().state_dict())


def test_the_loss_of_words_is_that_of_masked_patches_with_words(worded):
    model = word_model().eval()
    torch.nn.init.normal_(model.decoder.predict.weight)
    torch.manual_seed(3)
    parts = reconstruction_loss(0.75, 0.5)(model, as_batch(worded), 0.0)
    torch.manual_seed(3)
    masked = draw_mask(worded.num_patches, 0.75)
    predicted, hidden = model(worded, masked), worded.select(masked)
    counts = hidden.word_bounds.diff()
    of_words = model.word_target(hidden.words, counts[counts > 0])
    size = model.target.size
    assert 1 < len(of_words) < int(masked.sum())
    patches = (predicted[:, :size] - model.target(hidden.patches)).square().mean()
    words = (predicted[counts > 0][:, size:] - of_words).square().mean()
    torch.testing.assert_close(parts["patch_loss"], patches)
    torch.testing.assert_close(parts["word_loss"], words)
    torch.testing.assert_close(parts["loss"], patches + 0.5 * words)


def test_predicting_the_mean_of_words_costs_one(worded):
    model = word_model()
    torch.nn.init.zeros_(model.decoder.predict.weight)
    assert reconstruction_loss(0.99)(model, as_batch(worded), 0.0)["word_loss"].item() == pytest.approx(1, abs=0.01)


def test_a_batch_without_words_has_no_loss_of_words(worded):
    model = word_model()
    parts = reconstruction_loss(0.75)(model, as_batch(worded.without_words()), 0.0)
    assert parts["word_loss"] == 0
    assert torch.equal(parts["loss"], parts["patch_loss"])
    parts["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert set(reconstruction_loss(0.75)(masked_model(), as_batch(worded), 0.0)) == {"loss"}
