"""Distilling the maps of ONNX networks from end to end: without labels and with them, one network and several."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TINY, worded_pdf
from kd_onnx import write_network
from safetensors.torch import load_file

from docvit.data.augment import Augmentation
from docvit.data.labels import read_labelled
from docvit.model.docvit import DocViT
from docvit.training import loop
from docvit.training.batches import held_out_batches
from docvit.training.distributed import Process
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.supervised import train_documents
from kd import cli
from kd.config import DistillationError, DistillConfig
from kd.documents.outputs import document_outputs
from kd.documents.run import distill_documents

RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY | {"drop_path": 0.2},
    budget=40,
    patch_dropout=0.2,
    ema=0.9,
    augmentation=Augmentation(shift=0.03, scale=0.05, ink=0.2, scan=0.3),
    train=TrainSettings(epochs=2, lr=3e-3),
)
LOSSES = ["one:brightness/patches_loss", "one:brightness/pages_loss", "two:mixed/patches_loss", "two:mixed/pages_loss"]


@pytest.fixture(scope="module")
def data(corpus):
    """Two documents per class, of two and of three pages: three batches per epoch."""
    return read_labelled(corpus).subset([0, 1, 4, 5, 8, 9])


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    one, two = (write_network(folder / f"{name}.onnx", seed=seed) for seed, name in enumerate(("one", "two")))
    return [f"{one}:brightness", f"{two}:mixed"]


def distil(teacher, data, folder, config=DistillConfig(), recipe=RECIPE, **options):
    return distill_documents(recipe, teacher, data, folder, config, device="cpu", workers=0, **options)


def for_epochs(epochs, **settings):
    return replace(RECIPE, settings=RECIPE.settings | settings, train=replace(RECIPE.train, epochs=epochs))


def test_a_student_learns_several_maps_without_labels_and_goes_on_with_them(networks, data, tmp_path):
    done = distil(networks, data.paths, tmp_path / "maps", recipe=for_epochs(8))
    first, last = done.history[0], done.history[-1]
    assert {name for name in first if name.endswith("_loss")} == set(LOSSES)
    assert all(last[name] < 0.9 * first[name] for name in LOSSES)
    assert last["loss"] == pytest.approx(sum(last[name] for name in LOSSES), rel=1e-5)
    saved = DocViT.from_pretrained(tmp_path / "maps")
    assert (saved.num_classes, saved.config.classes) == (0, ())
    assert not [name for name in saved.state_dict() if "projection" in name]
    recipe = replace(RECIPE, init=str(tmp_path / "maps"), settings={}, train=TrainSettings(epochs=1, lr=0.0), ema=0.0)
    trained, _ = train_documents(data, tmp_path / "labels", recipe, device="cpu", workers=0)
    assert trained.config.classes == CLASSES
    assert torch.equal(trained.blocks[0].attn.qkv.weight, saved.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("settings", [{"num_registers": 2}, {"depth": 0, "stem": "ink", "patch_size": 16}])
def test_patch_tokens_stand_behind_the_prefix_tokens_of_their_page(data, settings):
    model = build_model(replace(RECIPE, settings=TINY | settings), ()).eval()
    files = render_all(data.paths[:3], model.config.rendering, Process(torch.device("cpu")), workers=0)
    batch = next(iter(held_out_batches(data.only(files), files, model.config, RECIPE)))
    with torch.no_grad():
        found = document_outputs(model, batch, ["patches"])
        tokens = model.forward_intermediates(batch.sequence)["blocks.1" if model.blocks else "embed"]
        expected, begin = [], 0
        for count in batch.sequence.page_bounds.diff().tolist():
            begin += 1 + model.config.num_registers
            expected.append(model.norm(tokens[begin : begin + count]))
            begin += count
        pages = model.forward_features(batch.sequence).pages
    assert begin == len(tokens)
    assert torch.equal(found["patches"], torch.cat(expected))
    torch.testing.assert_close(found["pages"], pages)


def test_with_labels_both_count(networks, data, tmp_path):
    config = DistillConfig(map_loss=0.5)
    (record,) = distil(networks[0], data, tmp_path, config, for_epochs(1), valid=data).history
    maps = record[LOSSES[0]] + record[LOSSES[1]]
    labels = record["hard_loss"] + RECIPE.page_loss * record["page_hard_loss"]
    assert record["loss"] == pytest.approx(labels + 0.5 * maps, rel=1e-5)
    assert "soft_loss" not in record
    assert "valid_accuracy" in record
    assert DocViT.from_pretrained(tmp_path).config.classes == CLASSES


def test_a_docvit_and_a_network_teach_together(networks, trained, data, tmp_path):
    config = DistillConfig(alpha=0.3, features={"pages": 2.0})
    options = {"unlabelled": data.paths[:3], "teacher_cache": tmp_path / "cache"}
    teachers, recipe = [str(trained), networks[1]], for_epochs(1)
    (record,) = distil(teachers, data, tmp_path / "one", config, recipe, **options).history
    (cached,) = distil(teachers, data, tmp_path / "two", config, recipe, **options).history
    assert cached == record | {"seconds": cached["seconds"]}
    assert {"hard_loss", "soft_loss", "page_soft_loss", "pages_loss", *LOSSES[2:]} < set(record)
    terms = {"hard_loss": 0.7, "soft_loss": 0.3, "pages_loss": 2.0, "unlabelled_loss": 1.0, LOSSES[2]: 1, LOSSES[3]: 1}
    terms |= {f"page_{name}": RECIPE.page_loss * weight for name, weight in list(terms.items())[:2]}
    assert record["loss"] == pytest.approx(sum(weight * record[name] for name, weight in terms.items()), rel=1e-5)


def test_a_student_without_blocks_learns_maps_of_pages_alone(networks, data, tmp_path):
    recipe = replace(for_epochs(1), model="docvit_linear_patch32", settings={"page_size": 64, "embed_dim": 32})
    (record,) = distil(networks[0], data.paths, tmp_path, recipe=recipe).history
    assert {name for name in record if name.endswith("_loss")} == {LOSSES[1]}


def test_resumed_equals_uninterrupted_to_the_bit(networks, data, tmp_path, monkeypatch):
    steps, original = [], loop._Run._step

    def step(self, batch):
        steps.append(1)
        if len(steps) == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(loop._Run, "_step", step)
    stop = None
    whole = distil(networks, data.paths, tmp_path / "whole")
    stop, steps = len(steps) - 2, []
    with pytest.raises(KeyboardInterrupt):
        distil(networks, data.paths, tmp_path / "cut")
    resumed = distil(networks, data.paths, tmp_path / "cut", resume=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert resumed.history[-1]["loss"] == whole.history[-1]["loss"]
    other = write_network(tmp_path / "one.onnx", seed=5)
    with pytest.raises(Exception, match=r"teacher maps one:brightness was '[0-9a-f]{64}', not"):
        distil([f"{other}:brightness", networks[1]], data.paths, tmp_path / "cut", resume=True)


def _distil_share(rank, teacher, paths, output):
    student = distil(teacher, paths, output, recipe=for_epochs(1, words=64), cache=output / "cache").student
    torch.save(student.state_dict(), output / f"rank{rank}.pt")


def test_two_processes_end_with_one_student_which_reads_words(networks, tmp_path, in_two_processes):
    paths = [str(tmp_path / f"{kind}{number}.pdf") for kind in CLASSES for number in range(2)]
    for path in paths:
        Path(path).write_bytes(worded_pdf(Path(path).stem[:-1], int(path[-5])))
    in_two_processes(_distil_share, networks[0], paths, tmp_path)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert all(torch.equal(one[name], saved[name]) for name in saved)
    assert DocViT.from_pretrained(tmp_path).words.counted
    assert len(list((tmp_path / "cache" / "maps").glob("??/*"))) == len(paths)


def test_copies_and_unreadable_documents_are_left_out(networks, corpus, data, tmp_path):
    (tmp_path / "copy.pdf").write_bytes(Path(data.paths[0]).read_bytes())
    (tmp_path / "bad.pdf").write_bytes(b"<html>")
    further = [str(tmp_path / name) for name in ("copy.pdf", "bad.pdf")]
    done = distil(networks[0], [*data.paths, *further], tmp_path / "more", recipe=for_epochs(1))
    assert [line.split(":")[0] for line in done.left_out] == ["Unreadable"]
    alone = distil(networks[0], data.paths, tmp_path / "alone", recipe=for_epochs(1))
    assert done.history[0]["loss"] == alone.history[0]["loss"]


@pytest.mark.parametrize(
    ("teacher", "config", "options", "words"),
    [
        ("self", {}, {}, "documents without labels have ONNX networks alone as teachers"),
        (None, {"fine_tune": 1}, {}, "neither evaluated nor fine-tuned"),
        (None, {}, {"valid": True}, "neither evaluated nor fine-tuned"),
        (None, {"simkd": True}, {}, "features and the classifier are taken from one teacher"),
        (None, {"consistency": 1.0}, {}, "consistency is with the student's own moving average"),
        (None, {}, {"teacher_cache": "cache"}, "nothing is cached"),
        (None, {"map_loss": -1.0}, {}, "map_loss, consistency and fine_tune must be at least 0"),
    ],
)
def test_what_cannot_be_had_without_labels(networks, data, tmp_path, teacher, config, options, words):
    options = options | ({"valid": data} if "valid" in options else {})
    with pytest.raises(DistillationError, match=words):
        distil(teacher or networks[0], data.paths, tmp_path, DistillConfig(**config), **options)


def test_two_networks_of_one_name_are_refused(networks, data, tmp_path):
    with pytest.raises(DistillationError, match="two teachers are called one:brightness"):
        distil([networks[0], networks[0]], data.paths, tmp_path)


def test_the_command_needs_no_labels_and_says_in_one_line_what_is_wrong(networks, corpus, command, tmp_path):
    line = ["kd", "distill", corpus, "--student", "docvit_linear_patch32", "--page-size", 64, "--words", 0]
    line += ["--epochs", 1, "--workers", 0, "--device", "cpu", "--output", tmp_path / "out", "--teacher"]
    code, out, _ = command(cli.main, *line, networks[0], "--teacher", networks[1])
    assert code == 0
    assert LOSSES[1] in out
    assert LOSSES[3] in out
    assert DocViT.from_pretrained(tmp_path / "out").config.classes == ()
    line[line.index(tmp_path / "out")] = tmp_path / "other"
    code, out, err = command(cli.main, *line, f"{tmp_path}/none.onnx:x")
    assert (code, out) == (2, "")
    assert err == f"error: there is no file {tmp_path}/none.onnx: check the path of the teacher\n"
