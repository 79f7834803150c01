"""Runs that are interrupted go on to the bit; what cannot go on says why."""

from __future__ import annotations

import logging
import math
import os
import signal
import time

import pytest
import torch
from torch import nn
from toy_training import PLAIN, Listed, assert_equal, interrupt_at, loss, net, weights, without_time

from docvit.training.checkpoint import load_checkpoint
from docvit.training.ema import EMATeacher
from docvit.training.loop import CHECKPOINT, TrainingError, TrainSettings, fit

# --- interrupted and resumed ---


@pytest.mark.parametrize(
    ("step", "number"), [*((step, signal.SIGINT) for step in (1, 7, 10, 14, 20)), (10, signal.SIGTERM)]
)
def test_resumed_equals_uninterrupted_to_the_bit(tmp_path, step, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    whole, of_whole = net(), EMATeacher(net(), decay=0.9)
    history = fit(whole, Listed(), loss, PLAIN, ema=of_whole)

    model, ema = net(), EMATeacher(net(), decay=0.9)
    with pytest.raises(KeyboardInterrupt):
        fit(model, Listed(), interrupt_at(step, number), PLAIN, ema=ema, output=tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    torch.manual_seed(99)  # another process
    model, ema = net(), EMATeacher(net(), decay=0.9)
    resumed = fit(model, Listed(), loss, PLAIN, ema=ema, output=tmp_path, resume=True)

    assert_equal(weights(model, ema.module), weights(whole, of_whole.module))
    assert without_time(resumed) == without_time(history)


def test_twice_interrupted_is_no_worse(tmp_path):
    whole = net()
    fit(whole, Listed(), loss, PLAIN)
    for resume, step in ((False, 4), (True, 6)):
        with pytest.raises(KeyboardInterrupt):
            fit(net(), Listed(), interrupt_at(step), PLAIN, output=tmp_path, resume=resume)
    model = net()
    fit(model, Listed(), loss, PLAIN, output=tmp_path, resume=True)
    assert_equal(weights(model), weights(whole))


def test_ctrl_c_finishes_the_step_and_a_second_one_does_not(tmp_path, caplog):
    done = []

    def twice(model, pair, progress):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        done.append("second")
        return loss(model, pair, progress)

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        fit(net(), Listed(), twice, PLAIN, output=tmp_path)
    assert done == ["first"]
    assert not (tmp_path / CHECKPOINT).exists()
    assert "stopping after this step" in caplog.text


def test_a_finished_run_resumes_to_itself(tmp_path):
    model = net()
    history = fit(model, Listed(), loss, PLAIN, output=tmp_path)
    again = net()
    assert fit(again, Listed(), loss, PLAIN, output=tmp_path, resume=True) == history
    assert_equal(weights(again), weights(model))


def test_time_alone_may_be_set_anew(tmp_path):
    fit(net(), Listed(), loss, PLAIN, output=tmp_path)
    patient = TrainSettings(**{**PLAIN.__dict__, "checkpoint_minutes": 60.0})
    fit(net(), Listed(), loss, patient, output=tmp_path, resume=True)


def test_a_run_goes_on_for_longer_under_the_schedule_of_the_longer_run(tmp_path):
    fit(net(), Listed(), loss, PLAIN, output=tmp_path)
    longer = TrainSettings(**{**PLAIN.__dict__, "epochs": 5})
    model, of_longer = net(), fit(net(), Listed(), loss, longer)
    history = fit(model, Listed(), loss, longer, output=tmp_path, resume=True)
    assert [row["lr"] for row in history[3:]] == [row["lr"] for row in of_longer[3:]]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert history[4]["loss"] != history[2]["loss"]
    again = net()
    assert fit(again, Listed(), loss, longer, output=tmp_path, resume=True) == history
    assert_equal(weights(again), weights(model))


def test_checkpoints_are_written_within_an_epoch(tmp_path):
    impatient = TrainSettings(**{**PLAIN.__dict__, "checkpoint_minutes": 0.0})
    steps = []

    def looking(model, pair, progress):
        if (tmp_path / CHECKPOINT).exists():
            steps.append(load_checkpoint(tmp_path / CHECKPOINT)["values"]["step"])
        return loss(model, pair, progress)

    fit(net(), Listed(), looking, impatient, output=tmp_path)
    assert steps == list(range(1, 21))


# --- what cannot be resumed ---


def resume(folder, model=None, *, settings=PLAIN, batches=None, ema=None):
    return fit(model or net(), batches or Listed(), loss, settings, ema=ema, output=folder, resume=True)


def test_a_folder_that_holds_no_run(tmp_path):
    with pytest.raises(TrainingError, match="no run to resume"):
        resume(tmp_path)


def test_other_settings_data_or_model_are_refused_by_name(tmp_path):
    fit(net(), Listed(), loss, PLAIN, output=tmp_path)
    before = (tmp_path / CHECKPOINT).read_bytes()
    other = TrainSettings(**{**PLAIN.__dict__, "lr": 0.1, "epochs": 2})
    with pytest.raises(TrainingError, match=r"epochs was 3, lr was 0\.05"):
        resume(tmp_path, settings=other)
    with pytest.raises(TrainingError, match="use of an EMA"):
        resume(tmp_path, ema=EMATeacher(net(), decay=0.9))
    with pytest.raises(TrainingError, match="7 batches per epoch, and here are 8"):
        resume(tmp_path, batches=Listed(8))
    with pytest.raises(TrainingError, match="another model"):
        resume(tmp_path, nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Dropout(), nn.Linear(4, 3)))
    with pytest.raises(TrainingError, match="another model"):
        resume(tmp_path, nn.Linear(6, 3))
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_what_a_run_was_evaluated_on_is_not_forgotten(tmp_path):
    def evaluate(model):
        return {"valid_loss": 1.0}

    fit(net(), Listed(), loss, PLAIN, output=tmp_path, evaluate=evaluate)
    with pytest.raises(TrainingError, match=r"was evaluated on held-out data: give it again \(--valid\)"):
        resume(tmp_path)
    fit(net(), Listed(), loss, PLAIN, output=tmp_path, evaluate=evaluate, resume=True)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-100], lambda b: b"\xff" * len(b), lambda b: b"{}"])
def test_a_damaged_checkpoint(tmp_path, damage):
    fit(net(), Listed(), loss, PLAIN, output=tmp_path)
    file = tmp_path / CHECKPOINT
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(TrainingError, match="is damaged"):
        resume(tmp_path)


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_last_checkpoint(tmp_path):
    calls = []

    def bursting(model, pair, progress):
        calls.append(1)
        parts = loss(model, pair, progress)
        return {**parts, "loss": parts["loss"] * (math.inf if len(calls) == 10 else 1)}

    with pytest.raises(TrainingError, match=r"epoch 2.*lower the learning rate"):
        fit(net(), Listed(), bursting, PLAIN, output=tmp_path)
    state = load_checkpoint(tmp_path / CHECKPOINT)
    assert state["values"]["step"] == 7
    assert all(value.isfinite().all() for value in state["model"].values())
    whole, model = net(), net()
    fit(whole, Listed(), loss, PLAIN)
    resume(tmp_path, model)
    assert_equal(weights(model), weights(whole))
