"""Batches side by side: in order, a few ahead, and the cores handed back."""

from __future__ import annotations

import copy
import threading
import time

import pytest
import torch
from torch import nn

from docvit.hardware import cast_linear, in_streams


@pytest.fixture
def cores():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield 4
    torch.set_num_threads(before)


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_results_keep_their_order_and_the_first_comes_before_the_second_item_is_taken(cores, streams):
    taken = []

    def items():
        for i in range(7):
            taken.append(i)
            yield i

    def slow_at_first(i):
        time.sleep(0.05 if i == 1 else 0)
        return 10 * i

    results = in_streams(slow_at_first, items(), streams)
    assert next(results) == 0
    assert taken == [0]
    for index, result in enumerate(results, 1):
        assert result == 10 * index
        assert len(taken) <= index + 3 * streams
    assert taken == list(range(7))


def test_streams_share_the_cores_run_together_and_hand_the_cores_back(cores):
    meeting = threading.Barrier(2, timeout=10)

    def meet(i):
        if i:  # the first is alone
            meeting.wait()
        return torch.get_num_threads()

    assert list(in_streams(meet, range(5), 2)) == [cores] + [2] * 4
    assert torch.get_num_threads() == cores


def test_an_error_in_one_stream_is_the_callers(cores):
    def fail(i):
        if i == 2:
            raise ValueError("two")
        return i

    with pytest.raises(ValueError, match="two"):
        list(in_streams(fail, range(9), 2))
    assert torch.get_num_threads() == cores


def test_left_early_it_ends_quietly(cores):
    results = in_streams(lambda i: i, iter(int, 1), 2)
    assert [next(results) for _ in range(3)] == [0, 0, 0]
    results.close()
    assert torch.get_num_threads() == cores


def test_linear_layers_cast_once_give_what_autocast_gives_and_leave_the_model_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.BatchNorm1d(16), nn.Linear(16, 4, bias=False)
    )
    model.eval()
    before = {name: (value, value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    cast, inputs = cast_linear(model), torch.randn(5, 8)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast(inputs), model(inputs))
    assert {module.weight.dtype for module in cast if isinstance(module, nn.Linear)} == {torch.bfloat16}
    assert cast[0].weight is model[0].weight  # no memory for what stays as it is
    exact = cast_linear(copy.deepcopy(model).double())
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float64}
    for name, value in model.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
