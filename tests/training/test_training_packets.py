"""Training with packets: the head learns where documents begin, and the rest of the model does not notice."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from docvit.data.dataset import DocumentDataset, view_of
from docvit.data.labels import read_labelled
from docvit.documents.cache import PageCache
from docvit.model.docvit import DocViT
from docvit.training import boundaries
from docvit.training.boundaries import Pages, boundary_loss, see_packet
from docvit.training.loop import TrainSettings
from docvit.training.recipe import BOUNDARIES, Recipe, build_model
from docvit.training.supervised import train_documents

RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY | {"stem": "ink", "patch_size": 16},
    budget=60,
    ema=0.0,
    packets=2.0,
    train=TrainSettings(epochs=2, lr=3e-3),
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


def seen(data, folder, page_cache, number=0, seed=0):
    model = DocViT.from_pretrained(folder)
    files, _ = PageCache(page_cache, model.config.rendering, words=True).prepare(data.paths, workers=0)
    dataset = DocumentDataset(
        [files[p] for p in data.paths], data.labels, view_of(model.config, training=True), seed=seed
    )
    return model, see_packet(model, dataset, np.arange(12), number, device=torch.device("cpu"))


def test_the_rest_of_the_model_is_that_of_a_run_without_packets_to_the_bit(trained, data, tmp_path):
    _, weights = trained
    plain = train(data, tmp_path, replace(RECIPE, packets=0.0))
    assert {name.split(".")[0] for name in weights.keys() - plain.keys()} == {"boundaries"}
    assert all(torch.equal(weights[name], value) for name, value in plain.items())


def test_the_head_learns_where_documents_begin(trained, data, page_cache):
    model, _ = seen(data, trained[0], page_cache)
    losses = {}
    for name, head in (("trained", model.boundaries), ("fresh", build_model(RECIPE, data.classes).eval().boundaries)):
        packets = [seen(data, trained[0], page_cache, number, seed=7)[1] for number in range(8)]
        with torch.no_grad():
            losses[name] = np.mean([boundary_loss(head, packet)["loss"].item() for packet in packets])
    assert losses["trained"] < 0.6 * losses["fresh"]


def test_the_same_seed_gives_the_same_head(trained, data, tmp_path):
    again = train(data, tmp_path)
    assert all(torch.equal(again[name], value) for name, value in trained[1].items())


def test_the_loss_is_the_cross_entropy_of_the_pages_that_have_one_before_them(trained, data, page_cache):
    model, packet = seen(data, trained[0], page_cache)
    two = Pages(*(torch.cat([part, part]) for part in packet))
    two = two._replace(packet=torch.arange(2).repeat_interleave(len(packet.begins)))
    with torch.no_grad():
        logits = model.boundaries(packet.tokens, packet.ties, packet.packet).tolist()
        losses = [math.log1p(math.exp(-z if begins else z)) for z, begins in zip(logits, packet.begins, strict=True)]
        for batch in (packet, two):
            expected = sum(losses[1:]) / (len(losses) - 1)
            assert boundary_loss(model.boundaries, batch)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_packets_of_one_page_have_no_loss_and_do_no_harm(trained, data, page_cache):
    model, packet = seen(data, trained[0], page_cache)
    single = Pages(*(part[:1] for part in packet))
    assert boundary_loss(model.boundaries.train(), single)["loss"].item() == 0.0


def test_their_number_is_a_share_of_the_documents(trained, data, tmp_path, monkeypatch):
    numbers = []
    original = boundaries.see_packet
    monkeypatch.setattr(boundaries, "see_packet", lambda *a, **k: numbers.append(a[3]) or original(*a, **k))
    train(data, tmp_path, replace(RECIPE, packets=0.5, train=TrainSettings(epochs=1)))
    assert numbers == list(range(6))


def test_packets_bring_a_head_and_training_without_them_leaves_it_out(trained):
    folder, _ = trained
    classes = ("bars", "blocks", "text")
    assert build_model(RECIPE, classes).config.boundaries == BOUNDARIES
    assert build_model(replace(RECIPE, settings={**TINY, "boundaries": 8}), classes).config.boundaries == 8
    again = build_model(replace(RECIPE, init=str(folder)), classes)
    assert torch.equal(again.boundaries.proj.weight, trained[1]["boundaries.proj.weight"])
    assert build_model(replace(RECIPE, init=str(folder), packets=0.0), classes).boundaries is None
