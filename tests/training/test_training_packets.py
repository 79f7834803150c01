"""Training with packets: the head learns, the rest of the model does not notice, resumed runs are exact."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from docvit.data.dataset import DocumentDataset, view_of
from docvit.data.labels import read_labelled
from docvit.model.docvit import DocViT
from docvit.training import loop
from docvit.training.distributed import process_group
from docvit.training.loop import TrainSettings
from docvit.training.recipe import BOUNDARIES, Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.supervised import boundary_loss, train_documents

RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY | {"stem": "ink", "patch_size": 16},
    budget=60,
    ema=0.0,
    packets=0.25,
    train=TrainSettings(epochs=2, lr=3e-3, clip=None),
)


@pytest.fixture(scope="module")
def data(corpus):
    return read_labelled(corpus)


def train(data, folder, recipe=RECIPE, **options):
    train_documents(data, folder, recipe, device="cpu", workers=0, **options)
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packets")
    return folder, train(data, folder)


def test_without_clipping_the_rest_of_the_model_is_that_of_a_run_without_packets_to_the_bit(trained, data, tmp_path):
    _, weights = trained
    plain = train(data, tmp_path, replace(RECIPE, packets=0.0))
    assert {name.split(".")[0] for name in weights.keys() - plain.keys()} == {"boundaries"}
    assert all(torch.equal(weights[name], value) for name, value in plain.items())


def test_resumed_equals_uninterrupted(trained, data, tmp_path, monkeypatch):
    original, steps = loop._Run._step, []

    def interrupted(self, batch):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(loop._Run, "_step", interrupted)
    recipe = replace(RECIPE, train=replace(RECIPE.train, checkpoint_minutes=0.0))
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path, recipe)
    monkeypatch.setattr(loop._Run, "_step", original)
    resumed = train(data, tmp_path, recipe, resume=True)
    assert all(torch.equal(resumed[name], value) for name, value in trained[1].items())


@pytest.fixture
def packets(data, trained):
    """The trained model, and three packets as it sees them."""
    model = DocViT.from_pretrained(trained[0])
    with process_group("cpu") as process:
        files = render_all(data.paths, model.config.rendering, process, cache=None, workers=0)
    view = view_of(model.config, packets=1.0, training=True)
    dataset = DocumentDataset([files[path] for path in data.paths], data.labels, view)
    return model, dataset.collate([dataset[0, i] for i in range(3)]).packets


def test_the_loss_is_the_cross_entropy_of_the_pages_that_have_one_before_them(packets):
    model, batch = packets
    logits = model.forward_boundaries(model.forward_features(batch.sequence), batch.sequence).tolist()
    bounds, losses = batch.sequence.document_bounds.tolist(), []
    for first, end in pairwise(bounds):
        for page in range(first + 1, end):
            sign = 1 if batch.begins[page] else -1
            losses.append(math.log1p(math.exp(-sign * logits[page])))
    assert boundary_loss(model, batch).item() == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_batch_norms_outside_the_head_do_not_follow_packets(packets):
    model, batch = packets
    before = {name: value.clone() for name, value in model.named_buffers() if not name.startswith("boundaries")}
    boundary_loss(model.train(), batch).backward()
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers() if name in before)


def test_packets_bring_a_head_and_training_without_them_leaves_it_out(trained):
    folder, _ = trained
    classes = ("bars", "blocks", "text")
    assert build_model(RECIPE, classes).config.boundaries == BOUNDARIES
    assert build_model(replace(RECIPE, settings={**TINY, "boundaries": 8}), classes).config.boundaries == 8
    again = build_model(replace(RECIPE, init=str(folder)), classes)
    assert torch.equal(again.boundaries.proj.weight, trained[1]["boundaries.proj.weight"])
    assert build_model(replace(RECIPE, init=str(folder), packets=0.0), classes).boundaries is None
