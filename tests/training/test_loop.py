"""The training loop: what a step computes, what is written and logged, and several processes at once."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from toy_training import PLAIN, Listed, Pair, interrupt_at, loss, net, weights

import docvit.training.loop as train
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.training.checkpoint import load_checkpoint
from docvit.training.ema import EMATeacher
from docvit.training.history import draw_curves
from docvit.training.loop import CHECKPOINT, TrainSettings, fit

# --- what a step does ---


def rates(settings, count):
    """The learning rate of every step, seen from outside: SGD on a loss whose gradient is one."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    model = nn.ParameterList([parameter])
    seen = []

    def unit(model, batch, progress):
        seen.append(float(model[0].detach()))
        return {"loss": model[0].sum()}

    fit(model, Listed(count), unit, settings)
    return -np.diff([*seen, float(parameter.detach())])


@pytest.mark.parametrize(("epochs", "count", "warmup"), [(3, 7, 0.2), (2, 10, 0.0), (1, 1, 0.1)])
def test_the_learning_rate_warms_up_linearly_and_follows_a_cosine(epochs, count, warmup, caplog):
    settings = TrainSettings(epochs=epochs, lr=0.3, optimizer="momentum", momentum=0, weight_decay=0, warmup=warmup)
    settings = TrainSettings(**{**settings.__dict__, "clip": None, "bf16": False})
    total = epochs * count
    rising = int(warmup * total)
    expected = [0.3 * t / rising if t < rising else 0.15 * (1 + math.cos(math.pi * t / total)) for t in range(total)]
    np.testing.assert_allclose(rates(settings, count), expected, atol=1e-9)
    assert not caplog.records


def test_a_constant_learning_rate_after_its_warmup():
    settings = TrainSettings(
        epochs=2, lr=0.3, optimizer="momentum", momentum=0, weight_decay=0, warmup=0.2, schedule="constant", clip=None
    )
    np.testing.assert_allclose(rates(settings, 10), [0.3 / 4, 0.6 / 4, 0.9 / 4] + [0.3] * 17, atol=1e-9)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="cosine or constant"):
        TrainSettings(schedule="linear")
    with pytest.raises(ValueError, match="at least 1"):
        TrainSettings(epochs=0)


def test_steps_are_those_of_adamw_with_clipped_gradients():
    settings = TrainSettings(
        epochs=1, lr=0.05, weight_decay=0.05, schedule="constant", warmup=0.0, clip=0.5, bf16=False
    )
    ours, theirs, batches = net(0.0), net(0.0), Listed(3)
    fit(ours, batches, loss, settings)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    others = [p for p in theirs.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.05)
    batches.set_epoch(0)
    for pair in batches:
        optimizer.zero_grad()
        F.cross_entropy(theirs(pair.x), pair.y).backward()
        norm = sum(p.grad.square().sum() for p in theirs.parameters()).sqrt()
        for p in theirs.parameters():
            p.grad *= min(1.0, 0.5 / float(norm))
        optimizer.step()
    for a, b in zip(weights(ours), weights(theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_weight_decay_is_on_matrices_only():
    config = DocViTConfig(embed_dim=32, depth=1, num_heads=2, num_classes=3, num_registers=1, init_values=0.1)
    model = DocViT(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = TrainSettings(epochs=1, lr=0.1, weight_decay=0.5, schedule="constant", warmup=0, bf16=False)
    nothing = lambda m, *_: {"loss": 0 * sum(p.sum() for p in m.parameters())}  # noqa: E731
    fit(model, Listed(1), nothing, settings)
    shrunk = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    linear = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert shrunk == linear
    for name in shrunk:
        torch.testing.assert_close(dict(model.named_parameters())[name], before[name] * (1 - 0.1 * 0.5))


def test_the_moving_average_is_one():
    model, seen = net(), []
    ema = EMATeacher(model, decay=0.7)

    def remembering(model, pair, progress):
        seen.append([p.detach().double().numpy().copy() for p in model.parameters()])
        return loss(model, pair, progress)

    fit(model, Listed(), remembering, PLAIN, ema=ema)
    seen.append([p.detach().double().numpy() for p in model.parameters()])
    average = seen[1]  # nothing is averaged before the first step is done
    for step, values in enumerate(seen[2:], 1):
        decay = min(0.7, 1 - (1 + step) ** (-2 / 3))
        average = [decay * a + (1 - decay) * v for a, v in zip(average, values, strict=True)]
    for a, b in zip(average, ema.module.parameters(), strict=True):
        np.testing.assert_allclose(b.detach().numpy(), a, rtol=1e-5, atol=1e-6)


# --- what is written and logged ---


def test_records_are_means_over_the_epoch_and_end_in_files(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "draw_curves", draw_curves)
    parts = []

    def remembering(model, pair, progress):
        found = loss(model, pair, progress)
        parts.append({name: float(value.detach()) for name, value in found.items()})
        return found

    model, ema = net(), EMATeacher(net(), decay=0.9)
    shown, saved = [], []

    def evaluate(m):
        shown.append((m, m.training))
        return {"valid_accuracy": 0.25}

    batches = Listed()
    history = fit(model, batches, remembering, PLAIN, output=tmp_path, ema=ema, evaluate=evaluate, save=saved.append)
    assert shown == [(ema.module, False)] * 3
    assert saved == [ema.module] * 3
    for epoch, record in enumerate(history):
        of_epoch = parts[epoch * 7 : (epoch + 1) * 7]
        assert record["epoch"] == epoch + 1
        assert record["valid_accuracy"] == 0.25
        for name in ("loss", "accuracy"):
            assert record[name] == pytest.approx(np.mean([p[name] for p in of_epoch]))
    with (tmp_path / "metrics.csv").open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [row.keys() for row in rows] == [record.keys() for record in history]
    for row, record in zip(rows, history, strict=True):
        assert row == pytest.approx(record, rel=1e-5)
    with Image.open(tmp_path / "curves.png") as curves:
        assert min(curves.size) > 300
        assert np.ptp(np.array(curves.convert("L"))) > 200
    assert sorted(p.name for p in tmp_path.iterdir()) == [CHECKPOINT, "curves.png", "metrics.csv"]


def test_curves_are_drawn_at_the_end_and_now_and_then_before(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(train, "draw_curves", lambda history, folder: drawn.append(len(history)))
    fit(net(), Listed(), loss, PLAIN, output=tmp_path / "short")
    assert drawn == [3]
    monkeypatch.setattr(train, "SECONDS_BETWEEN_PICTURES", -1)
    fit(net(), Listed(), loss, PLAIN, output=tmp_path / "long")
    assert drawn == [3, 1, 2, 3]


def test_without_an_output_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(net(), Listed(), loss, PLAIN)
    assert not list(tmp_path.iterdir())


def test_files_only_now_and_then_for_epochs_of_seconds(tmp_path):
    saved = []
    fit(net(), Listed(), loss, PLAIN, output=tmp_path, save=saved.append, every_epoch=False)
    assert len(saved) == 1
    assert (tmp_path / CHECKPOINT).is_file()


# --- several processes ---


def _one_of_two(rank, folder):
    torch.distributed.init_process_group("gloo")
    model = net(0.0)
    if rank:  # only the first process's weights count
        model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    fit(model, Listed(8, rank, 2), loss, PLAIN, output=folder / f"out{rank}", ema=EMATeacher(model, decay=0.9))
    torch.save(model.state_dict(), folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


def _interrupted(rank, folder):
    torch.distributed.init_process_group("gloo")
    try:
        fit(net(0.0), Listed(8, rank, 2), interrupt_at(3) if rank else loss, PLAIN, output=folder)
    except KeyboardInterrupt:
        (folder / f"stopped{rank}").touch()


def test_two_processes_average_their_gradients_and_one_of_them_writes(tmp_path, in_two_processes):
    in_two_processes(_one_of_two, tmp_path)
    assert not (tmp_path / "out1").exists()
    assert (tmp_path / "out0" / CHECKPOINT).is_file()
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)

    class Both(Listed):
        """The batches of both processes, two at a time: equally large, so the mean is the mean of their means."""

        def __len__(self):
            return 4

        def __iter__(self):
            pairs = [self.pairs[i] for i in self.order]
            for a, b in zip(pairs[::2], pairs[1::2], strict=True):
                yield Pair(torch.cat([a.x, b.x]), torch.cat([a.y, b.y]))

    alone = net(0.0)
    fit(alone, Both(8), loss, PLAIN)
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(first[name], value, atol=1e-5, rtol=1e-5)


def test_ctrl_c_in_one_process_stops_both_at_the_same_step(tmp_path, in_two_processes):
    in_two_processes(_interrupted, tmp_path)
    assert (tmp_path / "stopped0").exists()
    assert (tmp_path / "stopped1").exists()
    assert load_checkpoint(tmp_path / CHECKPOINT)["values"]["step"] == 3
