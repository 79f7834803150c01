"""Pre-training: hidden patches stay hidden, runs resume exactly, and training starts from what was learnt."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY
from PIL import Image
from safetensors.torch import load_file

from docvit import pretrain
from docvit.data import UNLABELLED, Batch, DataError, read_labelled
from docvit.model import DocViT, DocViTConfig
from docvit.positions import POSITIONS
from docvit.pretrain import (
    MaskedDocViT,
    PretrainRecipe,
    Target,
    build_masked,
    draw_mask,
    find_unlabelled,
    pretrain_documents,
    reconstruction_loss,
)
from docvit.recipes import Recipe, build_model, read_recipe, train_documents, write_recipe
from docvit.stems import InkStem
from docvit.train import CHECKPOINT, TrainingError, TrainSettings
from docvit.weights import load_pretrained

CONFIG = DocViTConfig(**TINY | {"drop_path": 0.2, "num_registers": 1}, num_classes=0)
RECIPE = PretrainRecipe(
    model="docvit_small_patch16",
    settings=TINY | {"drop_path": 0.2, "grid": [4, 4]},  # as JSON has it
    budget=60,
    train=TrainSettings(epochs=3, lr=3e-3, bf16=False),
)


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
    return Batch(sequence, labels, torch.arange(len(sequence)))


def run(paths, folder, recipe=RECIPE, **options):
    return pretrain_documents(paths, folder, recipe, device="cpu", workers=0, **options)


@pytest.fixture(scope="module")
def paths(corpus):
    return find_unlabelled(corpus)


@pytest.fixture(scope="module")
def pretrained(paths, tmp_path_factory):
    """The folder of an uninterrupted run under RECIPE."""
    folder = tmp_path_factory.mktemp("pretrained")
    run(paths, folder)
    return folder


def assert_same_weights(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# --- what the model sees ---


@pytest.mark.parametrize("stem", ["linear", "ink"])
@pytest.mark.parametrize("training", [True, False])
def test_hidden_patches_do_not_reach_the_prediction(batch, stem, training):
    model = masked_model(stem=stem).train(training)
    masked = draw_mask(batch.num_patches, 0.75)

    def foresee(patches):
        torch.manual_seed(1)  # of stochastic depth
        return model(replace(batch, patches=patches), masked)

    expected = foresee(batch.patches)
    hidden, shown = batch.patches.clone(), batch.patches.clone()
    hidden[masked] = torch.rand_like(hidden[masked]) * 9
    shown[~masked] = torch.rand_like(shown[~masked]) * 9
    assert torch.equal(foresee(hidden), expected)
    assert not torch.allclose(foresee(shown), expected, atol=1e-3)


def test_the_encoder_is_the_model_on_the_kept_patches(batch, monkeypatch):
    model = masked_model().eval()
    masked = draw_mask(batch.num_patches, 0.5)
    handed = []
    monkeypatch.setattr(model.decoder, "forward", lambda kept, *_: handed.append(kept) or kept)
    model(batch, masked)
    kept = batch.select(~masked)
    first = (kept.page_bounds[:-1] + 2 * torch.arange(3)).tolist()  # a class token and a register a page
    torch.testing.assert_close(handed[0][first], model.encoder.forward_features(kept).pages)


def test_visible_tokens_stand_at_their_own_places(batch):
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


def test_hidden_patches_are_told_apart_by_their_addresses_alone(batch):
    model = masked_model(positions="page-independent", scopes="page").eval()
    foreseen = model(batch, torch.ones(batch.num_patches, dtype=torch.bool))  # nothing is shown
    assert torch.cdist(foreseen, foreseen).add(torch.eye(len(foreseen))).min() > 1e-4


@pytest.mark.parametrize("positions", POSITIONS)
def test_every_scheme_can_be_pretrained(batch, positions):
    model = masked_model(positions=positions, scopes="alternate:2", init_values=1e-5)
    reconstruction_loss(0.75)(model, as_batch(batch))["loss"].backward()
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


def test_ink_is_described_as_the_stem_does_and_normalised_over_patches():
    patches = torch.rand(50, 256) * torch.rand(50, 1)
    target = Target("ink", CONFIG)
    x = InkStem(1, 16, 8).describe(patches).double().numpy()
    np.testing.assert_allclose(target(patches), (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6), rtol=1e-2, atol=1e-3)
    assert target.size == x.shape[1]
    assert not any(p.requires_grad for p in target.parameters())


def test_the_target_goes_with_the_stem():
    for stem, ink in (("linear", False), ("ink", True)):
        assert (build_masked(replace(RECIPE, settings=TINY | {"stem": stem})).target.ink is not None) == ink
    assert build_masked(replace(RECIPE, target="ink")).target.ink is not None


@pytest.mark.parametrize("target", ["pixels", "ink"])
def test_knowing_nothing_costs_one(batch, target):
    model = masked_model(target)
    torch.nn.init.zeros_(model.decoder.predict.weight)
    loss = reconstruction_loss(0.75)(model, as_batch(batch))["loss"]
    assert loss.item() == pytest.approx(1, abs=0.05)  # a little less: what hardly varies is not blown up


@pytest.mark.parametrize("target", ["pixels", "ink"])
@pytest.mark.parametrize("stem", ["linear", "ink"])
def test_blank_pages_and_single_patches_are_no_trouble(batch, stem, target):
    model = masked_model(target, stem=stem)
    blank = model.encoder.pack([[torch.zeros(1, 64, 64)]])
    single = batch.select(torch.arange(batch.num_patches) == 5)
    for sequence in (blank, single):
        loss = reconstruction_loss(0.75)(model, as_batch(sequence))["loss"]
        loss.backward()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


# --- runs ---


def test_it_learns(paths, tmp_path):
    recipe = replace(RECIPE, mask=0.5, target="ink", budget=200, train=replace(RECIPE.train, epochs=20, lr=1e-2))
    _, history = run(paths, tmp_path, recipe)
    first, *_, last = np.array([record["loss"] for record in history]).reshape(-1, 5).mean(1)
    assert last < 0.9 < first  # knowing nothing costs 1


def test_it_writes_a_model_folder(paths, tmp_path):
    recipe = replace(RECIPE, train=replace(RECIPE.train, epochs=1))
    encoder, history = run(paths, tmp_path, recipe)
    assert len(history) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        CHECKPOINT, "config.json", "curves.png", "metrics.csv", "model.safetensors", "recipe.json",
    ]  # fmt: skip
    saved = load_pretrained(tmp_path)
    assert (saved.num_classes, saved.config.classes) == (0, ())
    assert_same_weights(saved.state_dict(), encoder.state_dict())
    assert not encoder.training
    assert read_recipe(tmp_path, PretrainRecipe) == recipe


@pytest.mark.parametrize("step", [2, 8])
def test_resumed_equals_uninterrupted_to_the_bit(paths, pretrained, tmp_path, monkeypatch, step):
    original = reconstruction_loss

    def interrupting(share):
        inner, calls = original(share), iter(range(1, 10**6))

        def loss(model, batch):
            if next(calls) == step:
                os.kill(os.getpid(), signal.SIGINT)
            return inner(model, batch)

        return loss

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "reconstruction_loss", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(paths, tmp_path)
    assert (tmp_path / CHECKPOINT).is_file()
    run(paths, tmp_path, PretrainRecipe(), resume=True)  # under the run's own recipe
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path, pretrained))
    assert_same_weights(one, two)
    rows = [list(csv.DictReader((folder / "metrics.csv").open())) for folder in (tmp_path, pretrained)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert len(rows[0]) == 3


def test_training_starts_from_the_pretrained_weights(pretrained, corpus, tmp_path):
    recipe = Recipe(init=str(pretrained), ema=0.0, budget=200, train=TrainSettings(epochs=1, lr=0.0))
    model, _ = train_documents(read_labelled(corpus), tmp_path, recipe, device="cpu", workers=0)
    start = load_file(pretrained / "model.safetensors")
    trained = load_file(tmp_path / "model.safetensors")
    assert {name for name in trained if name not in start} == {"head.weight", "head.bias"}
    assert all(torch.equal(trained[name], value) for name, value in start.items())  # at a learning rate of 0
    assert model.config.classes == CLASSES
    assert not torch.equal(start["cls_token"], build_model(Recipe(settings=TINY), CLASSES).cls_token)


def test_training_may_start_under_other_settings(pretrained):
    changed = {"positions": "page-independent", "scopes": "page", "grid": (6, 6), "page_size": 96}
    start = load_file(pretrained / "model.safetensors")
    model = build_model(Recipe(init=str(pretrained), settings=changed), CLASSES)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, start["blocks.1.mlp.fc1.weight"])
    corners = torch.tensor([0, -1])
    torch.testing.assert_close(
        model.positions.spatial[corners][:, corners], start["positions.spatial"][corners][:, corners]
    )


def test_it_may_start_from_a_trained_model(paths, tmp_path):
    DocViT(replace(CONFIG, num_classes=3, classes=CLASSES)).save_pretrained(str(tmp_path / "trained"))
    recipe = replace(RECIPE, init=str(tmp_path / "trained"), train=replace(RECIPE.train, epochs=1, lr=0.0))
    run(paths, tmp_path / "out", recipe)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "trained"))
    assert set(two) - set(one) == {"head.weight", "head.bias"}
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_another_run_is_neither_overwritten_nor_resumed(paths, pretrained, tmp_path):
    before = {p: p.read_bytes() for p in pretrained.iterdir()}
    with pytest.raises(TrainingError, match="already holds a run"):
        run(paths, pretrained)
    write_recipe(tmp_path / "train", Recipe())
    with pytest.raises(TrainingError, match="of another kind of run"):
        run(paths, tmp_path / "train", resume=True)
    with pytest.raises(TrainingError, match="other data"):
        run(paths[:2], pretrained, resume=True)
    with pytest.raises(TrainingError, match="no run to resume"):
        run(paths, tmp_path, resume=True)
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("settings", "words"), [({"mask": 0.0}, "between 0 and 1"), ({"mask": 1.0}, "between"), ({"target": "x"}, "pixels")]
)
def test_a_recipe_that_cannot_be(settings, words):
    with pytest.raises(ValueError, match=words):
        PretrainRecipe(**settings)


# --- documents ---


def test_unreadable_documents_are_left_out_counted_and_listed(paths, pretrained, tmp_path, caplog):
    shutil.copytree(os.path.dirname(os.path.dirname(paths[0])), tmp_path / "data")
    (tmp_path / "data" / "empty.pdf").touch()
    (tmp_path / "data" / "bars" / "page.pdf").write_bytes(b"<html>")
    shutil.copy(paths[0], tmp_path / "data" / "copy.pdf")
    with caplog.at_level(logging.WARNING):
        run(find_unlabelled(tmp_path / "data"), tmp_path / "out")
    assert "2 of 15 documents are left out" in caplog.text
    assert f"Empty: {tmp_path}/data/empty.pdf" in caplog.text
    assert f"Unreadable: {tmp_path}/data/bars/page.pdf" in caplog.text
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", pretrained))
    assert_same_weights(one, two)  # neither they nor the copy change anything


def test_no_readable_document_at_all(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("a.pdf", "b.pdf"):
        (tmp_path / "data" / name).touch()
    with pytest.raises(DataError) as raised:
        run(find_unlabelled(tmp_path / "data"), tmp_path / "out")
    assert len(raised.value.problems) == 2
    with pytest.raises(DataError, match="there are none"):
        run([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_documents_are_found_as_training_finds_them_and_deeper(corpus, tmp_path):
    assert sorted(find_unlabelled(corpus)) == sorted(read_labelled(corpus).paths)
    picture = Image.new("L", (20, 20))
    for name in ("scans/a.png", "scans/b.png", "deep/er/p1.png", "deep/er/p2.png", "c.pdf"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    names = {os.path.relpath(p, tmp_path) for p in find_unlabelled(tmp_path)}
    assert names == {"scans/a.png", "scans/b.png", "deep/er", "c.pdf"}
    assert [os.path.basename(p) for p in find_unlabelled(tmp_path / "scans")] == ["a.png", "b.png"]


def test_a_csv_needs_no_labels(corpus, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(f"path,note\n{corpus}/bars/bars0.pdf,x\ngone.pdf,y\n,\n")
    assert find_unlabelled(table) == [f"{corpus}/bars/bars0.pdf", f"{tmp_path}/gone.pdf"]
    table.write_text("file\nx.pdf\n")
    with pytest.raises(DataError, match="missing column: path"):
        find_unlabelled(table)
    with pytest.raises(DataError, match="neither a folder nor a CSV"):
        find_unlabelled(tmp_path / "nowhere")


# --- the command ---


def test_the_command_pretrains_and_train_goes_on_from_there(docvit, pretrained, corpus, tmp_path):
    common = ("--epochs", 1, "--budget", 60, "--device", "cpu", "--workers", 0)
    first, second = tmp_path / "first", tmp_path / "second"
    options = ("--init", pretrained, "--mask", 0.6, "--target", "pixels", "--max-pages", 2)
    code, out, _ = docvit("pretrain", corpus, "--output", first, *options, *common)
    assert code == 0
    assert out.startswith(f"{first}: epoch 1")
    recipe = read_recipe(first, PretrainRecipe)
    assert (recipe.mask, recipe.target, recipe.max_pages, recipe.train.epochs) == (0.6, "pixels", 2, 1)
    assert recipe.train.weight_decay == PretrainRecipe.train.weight_decay
    assert docvit("train", corpus, "--init", first, "--output", second, *common)[0] == 0
    assert json.loads((second / "config.json").read_text())["embed_dim"] == TINY["embed_dim"]
    code, _, err = docvit("pretrain", corpus, "--output", first, "--resume", "--mask", 0.5, "--epochs", 1)
    assert code == 2
    assert "--mask was 0.6" in err
    assert docvit("pretrain", corpus, "--output", first, "--resume", "--mask", 0.6, "--device", "cpu")[0] == 0
    code, _, err = docvit("classify", corpus, "--model", first)
    assert code == 2
    assert "no classes" in err


# --- several processes ---


def _share(rank, paths, output):
    torch.set_num_threads(1)
    encoder, _ = run(paths, output, replace(RECIPE, settings=TINY | {"stem": "ink"}))
    torch.save(encoder.cls_token, output / f"rank{rank}.pt")


def test_two_processes_end_with_one_model(paths, tmp_path, in_two_processes):
    in_two_processes(_share, paths, tmp_path)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert torch.equal(one, two)
    assert torch.equal(one, load_file(tmp_path / "model.safetensors")["cls_token"])
