"""Every field of a recipe arrives where it acts: in the batches, in the loss, in the precision of the forward pass."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import nn

from docvit import hardware
from docvit.data.augment import Augmentation
from docvit.data.labels import read_labelled
from docvit.training import loop, masked, supervised
from docvit.training.loop import TrainSettings
from docvit.training.masked import PretrainRecipe, pretrain_documents
from docvit.training.recipe import Recipe
from docvit.training.supervised import train_documents

STILL = Augmentation(**dict.fromkeys(Augmentation().__dict__, 0.0))
RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY,
    max_pages=64,
    budget=100,
    mix_pages=0.0,
    label_smoothing=0.0,
    page_loss=0.0,
    ema=0.0,
    balanced=False,
    augmentation=STILL,
    train=TrainSettings(epochs=1, lr=1e-3),
)


@pytest.fixture(scope="module")
def data(corpus):
    return read_labelled(corpus)


@pytest.fixture
def begin(data, tmp_path, monkeypatch):
    """`begin(data, budget=60)` gives what a training under RECIPE, changed in these fields, hands to the loop."""

    def begin(documents=data, **changes):
        handed = SimpleNamespace()

        def fit(model, batches, loss, settings, **options):
            handed.__dict__.update(model=model, batches=batches, loss=loss, settings=settings, **options)
            return []

        with monkeypatch.context() as patch:
            patch.setattr(supervised, "fit", fit)
            folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
            train_documents(documents, folder, replace(RECIPE, **changes), device="cpu", workers=0)
        return handed

    return begin


def epochs(batches, count=1):
    for epoch in range(count):
        batches.set_epoch(epoch)
        yield from batches


def pages_of(batches, count=1):
    """(document, its pages as arrays) of every document in `count` epochs."""
    for batch in epochs(batches, count):
        pages = [page.numpy() for page in batch.sequence.patches.split(batch.sequence.page_bounds.diff().tolist())]
        bounds = batch.sequence.document_bounds.tolist()
        for index, first, end in zip(batch.index.tolist(), bounds, bounds[1:], strict=False):
            yield index, pages[first:end]


# --- batches ---


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_max_pages(begin, limit):
    counts = [len(pages) for _, pages in pages_of(begin(max_pages=limit).batches)]
    assert max(counts) == limit


@pytest.mark.parametrize("budget", [60, 200])
def test_budget(begin, budget):
    batches = list(epochs(begin(budget=budget).batches))
    tokens = [batch.sequence.num_patches + batch.sequence.num_pages for batch in batches]
    assert np.mean(tokens) == pytest.approx(budget, rel=0.2)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mix_pages(begin, share):
    own = {index: [page.tobytes() for page in pages] for index, pages in pages_of(begin().batches)}
    mixed = []
    for index, pages in pages_of(begin(mix_pages=share).batches, 12 if share % 1 else 2):
        assert pages[0].tobytes() == own[index][0]
        mixed.append(pages[1].tobytes() not in own[index])
    assert np.mean(mixed) == pytest.approx(share, abs=0.15)
    assert share % 1 or set(mixed) == {bool(share)}


@pytest.mark.parametrize("balanced", [True, False])
def test_balanced(begin, data, balanced):
    few = data.subset([0, 1, 2, 3, 4])  # four of the first class, one of the second
    batches = begin(few, balanced=balanced).batches
    labels = [label for batch in epochs(batches, 40 if balanced else 2) for label in batch.labels.tolist()]
    assert np.mean(np.array(labels) == 1) == pytest.approx(0.5 if balanced else 0.2, abs=0.1 if balanced else 1e-9)


def test_patch_dropout_and_augmentation(begin):
    plain = {index: np.concatenate(pages) for index, pages in pages_of(begin().batches)}
    fewer = {index: np.concatenate(pages) for index, pages in pages_of(begin(patch_dropout=0.8).batches)}
    changed = {index: np.concatenate(pages) for index, pages in pages_of(begin(augmentation=Augmentation()).batches)}
    assert sum(map(len, fewer.values())) < 0.85 * sum(map(len, plain.values()))
    assert all(changed[i].shape != plain[i].shape or not np.allclose(changed[i], plain[i]) for i in plain)


def test_seed(begin):
    orders = [
        [index for index, _ in pages_of(begin(train=replace(RECIPE.train, seed=seed)).batches)] for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


# --- the loss, the average, the loop ---


def test_label_smoothing_and_page_loss(begin):
    run = begin(label_smoothing=0.3, page_loss=0.7)
    batch, model = next(iter(run.batches)), run.model.eval()
    features = model.forward_features(batch.sequence)
    document = F.cross_entropy(model.forward_head(features), batch.labels, label_smoothing=0.3)
    labels = batch.labels.repeat_interleave(batch.sequence.document_bounds.diff())
    page = F.cross_entropy(model.forward_pages(features), labels, label_smoothing=0.3)
    torch.testing.assert_close(run.loss(model, batch, 0.0)["loss"], document + 0.7 * page)


def test_ema(begin):
    assert begin(ema=0.0).ema is None
    assert begin(ema=0.7).ema.decay == 0.7


def test_train(begin):
    settings = begin(train=TrainSettings(epochs=7, lr=0.3, seed=4, clip=None)).settings
    assert (settings.epochs, settings.lr, settings.seed, settings.clip) == (7, 0.3, 4, None)


# --- precision ---


@pytest.fixture
def products():
    """The data types that the matrix products of attention give in training."""
    seen = set()

    def note(module, _, output):
        if isinstance(module, nn.Linear) and module.out_features == 3 * TINY["embed_dim"] and module.training:
            seen.add(output.dtype)

    hook = nn.modules.module.register_module_forward_hook(note)
    yield seen
    hook.remove()


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("kind", ["train", "pretrain"])
def test_training_is_in_bfloat16_where_it_is_asked_for_and_fast(
    data, tmp_path, monkeypatch, products, asked, fast, kind
):
    for module in (hardware, loop, masked, supervised):
        monkeypatch.setattr(module, "has_fast_bf16", lambda device: fast, raising=False)
    few, settings = data.subset([0, 4]), TrainSettings(epochs=1, bf16=asked)
    where = {"device": "cpu", "workers": 0}
    if kind == "train":
        train_documents(few, tmp_path, replace(RECIPE, train=settings), **where)
    else:
        recipe = PretrainRecipe(model=RECIPE.model, settings=TINY, train=settings)
        pretrain_documents(few.paths, tmp_path, recipe, **where)
    assert products == {torch.bfloat16 if asked and fast else torch.float32}
