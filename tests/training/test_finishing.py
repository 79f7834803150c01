"""What a model learns last: interrupted there, a run goes on to the same model."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch
from conftest import TINY, WORDS, worded_pdf
from safetensors.torch import load_file

from docvit.data.labels import read_labelled
from docvit.inference.split import split
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError
from docvit.training import supervised
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from docvit.training.supervised import train_documents

RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY | {"drop_path": 0.2, "words": 64, "turns": True},
    budget=60,
    packets=0.4,
    ema=0.9,
    train=TrainSettings(epochs=2, lr=3e-3),
)

STAGES = ("train_turns", "train_boundaries", "add_text_classifier", "calibrate")


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for kind in WORDS:
        (folder / kind).mkdir()
        for number in range(4):
            (folder / kind / f"{number}.pdf").write_bytes(worded_pdf(kind, number))
    data = read_labelled(folder)
    held_out = [i for i in range(len(data)) if i % 4 == 3]
    return data.subset([i for i in range(len(data)) if i not in held_out]), data.subset(held_out)


def train(parts, folder, recipe=RECIPE, **options):
    data, valid = parts
    return train_documents(data, folder, recipe, valid=valid, device="cpu", workers=0, **options)


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as opened:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(opened)]


def test_interrupted_in_every_part_of_the_end_it_is_the_same_model(parts, tmp_path, monkeypatch, caplog):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(parts, whole)
    packet = parts[0].paths[0]
    assert split(packet, model=whole)
    for number, stage in enumerate(STAGES):

        def interrupted(*given, stage=getattr(supervised, stage), **options):
            stage(*given, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(supervised, stage, interrupted)
            with pytest.raises(KeyboardInterrupt):
                train(parts, stopped, resume=number > 0)
        assert "--resume goes on from here" in caplog.text
        caplog.clear()
        with pytest.raises(ModelError, match="has not learnt where documents begin"):
            split(packet, model=stopped)
        torch.manual_seed(number)  # another process
    train(parts, stopped, resume=True)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (stopped, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert (stopped / "config.json").read_text() == (whole / "config.json").read_text()
    assert rows(stopped) == rows(whole)
    config = DocViT.from_pretrained(stopped).config
    assert config.document_words
    assert config.known
    assert config.known_pixels


def test_a_run_stopped_while_it_trains_has_no_head_for_boundaries_either(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(supervised, "finish", lambda *_, **__: pytest.fail("it was stopped before"))

    def evaluated(*_, **__):
        if (tmp_path / "model.safetensors").exists():  # in the second epoch
            raise KeyboardInterrupt
        return {"valid_loss": 0.0}

    monkeypatch.setattr(supervised, "evaluate_batches", evaluated)
    with pytest.raises(KeyboardInterrupt):
        train(parts, tmp_path, replace(RECIPE, ema=0.0))
    assert DocViT.from_pretrained(tmp_path).boundaries is None
