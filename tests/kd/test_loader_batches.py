"""An ordinary DataLoader in the engine: the same epochs again, exact resumption, no draws from the loop's generator."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from docvit.training import loop as train
from docvit.training.loop import TrainSettings
from kd.batches import LoaderBatches
from kd.config import DistillationError
from kd.distill import distill
from kd.sweep import measure

SETTINGS = TrainSettings(epochs=3, lr=1e-2, clip=None, bf16=False, checkpoint_minutes=0.0)


class Noisy(Dataset):
    """Eight inputs with a random transform, as augmentation is."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return index + torch.rand(6), index % 3


def loader(**options):
    return DataLoader(Noisy(), **({"batch_size": 2, "shuffle": True} | options))


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def epochs(batches, count=3):
    found = []
    for epoch in range(count):
        batches.set_epoch(epoch)
        found.append([(batch.images, batch.labels) for batch in batches])
    return found


def same(one, two):
    return all(
        torch.equal(a, b) for left, right in zip(one, two, strict=True) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize("options", [{}, {"generator": torch.Generator()}, {"num_workers": 1}])
def test_an_epoch_is_the_same_whenever_it_is_asked_for_and_others_are_other(options):
    torch.manual_seed(1)
    first = epochs(LoaderBatches(loader(**options)))
    torch.manual_seed(2)
    again = LoaderBatches(loader(**options))
    again.set_epoch(1)
    assert same([(batch.images, batch.labels) for batch in again], first[1])
    again.set_epoch(2, skip=3)
    assert same([(batch.images, batch.labels) for batch in again], first[2][3:])
    assert not same(first[0], first[1])
    assert not same(epochs(LoaderBatches(loader(**options), seed=1), 1)[0], first[0])
    assert sorted(int(label) for _, labels in first[0] for label in labels) == [0, 0, 0, 1, 1, 1, 2, 2]


def test_it_draws_nothing_from_the_generator_of_the_loop():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epochs(LoaderBatches(loader()))
    assert torch.equal(torch.get_rng_state(), before)


class Stops(Exception):
    pass


@pytest.mark.parametrize("step", [1, 6, 11])
def test_interrupted_is_uninterrupted(tmp_path, monkeypatch, step):
    run = partial(distill, teacher=net(1), data=loader(), settings=SETTINGS, device="cpu", ema=0.9)
    whole = run(net(0), output=tmp_path / "whole").student.state_dict()
    plain_step, taken = train._Run._step, []

    def stopping(self, batch):
        if len(taken) == step:
            raise Stops
        taken.append(1)
        return plain_step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(train._Run, "_step", stopping)
        with pytest.raises(Stops):
            run(net(0), output=tmp_path / "parts")
    torch.manual_seed(9)  # another process
    resumed = run(net(0), output=tmp_path / "parts", resume=True).student.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_it_can_be_measured_on():
    inputs, labels = torch.randn(8, 6), torch.arange(8) % 3
    found = measure(net(0), DataLoader(TensorDataset(inputs, labels), batch_size=3), bf16=False)
    expected = (net(0).eval()(inputs).argmax(1) == labels).float().mean()
    assert found["accuracy"] == pytest.approx(float(expected))


def test_what_gives_no_pairs_is_refused_in_one_line():
    with pytest.raises(DistillationError, match=r"must give \(inputs, labels\), not Tensor"):
        distill(net(0), net(1), DataLoader(torch.randn(8, 6), batch_size=4), settings=replace(SETTINGS), device="cpu")
