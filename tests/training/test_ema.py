"""The EMA teacher against a moving average written out in float64."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from docvit.training.ema import EMATeacher


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4, 5))


def walk(model, seed):
    """A step of training, as far as an average is concerned: everything moves."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
        model.train()(torch.randn(4, 3, 4, 4, generator=generator).to(next(model.parameters()).dtype))


def decay_of_update(number, decay, warmup):
    if number == 1:
        return 0.0
    return min(decay, 1 - number ** (-2 / 3)) if warmup else decay


@pytest.mark.parametrize("settings", [{}, {"warmup": False}, {"decay": 0.5}])
def test_it_is_the_moving_average_written_out_in_float64(settings):
    model = net()
    teacher = EMATeacher(model, **settings)
    settings = {"decay": 0.999, "warmup": True} | settings
    expected = {}
    for step in range(1, 30):
        walk(model, step)
        teacher.update(model, step)
        decay = decay_of_update(step, **settings)
        for name, value in model.state_dict().items():
            value = value.double().numpy()
            expected[name] = decay * expected.get(name, value) + (1 - decay) * value
    for name, value in teacher.module.state_dict().items():
        if value.is_floating_point():
            np.testing.assert_allclose(value.double().numpy(), expected[name], rtol=1e-5, atol=1e-5)


def test_integer_buffers_are_copied_and_running_statistics_averaged():
    model = net()
    teacher = EMATeacher(model, warmup=False, decay=0.9)
    for step in range(1, 5):
        walk(model, step)
        teacher.update(model, step)
    assert teacher.module[1].num_batches_tracked == model[1].num_batches_tracked == 4
    assert not torch.equal(teacher.module[1].running_mean, model[1].running_mean)


def test_the_first_update_copies_the_model():
    model = net()
    teacher = EMATeacher(model, decay=0.9999, warmup=False)
    walk(model, 0)
    teacher.update(model, 1)
    for average, value in zip(teacher.module.parameters(), model.parameters(), strict=True):
        assert torch.equal(average, value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_averaged_in_float32(dtype):
    model = nn.Linear(64, 64).to(dtype)
    teacher = EMATeacher(model, decay=0.999, warmup=False)
    assert {parameter.dtype for parameter in teacher.module.parameters()} == {torch.float32}
    teacher.update(model, 1)
    before = model.weight.detach().double()
    with torch.no_grad():
        model.weight.add_(0.5)
    after = model.weight.detach().double()
    for step in range(2, 12):
        teacher.update(model, step)
    share = 0.999**10
    torch.testing.assert_close(teacher.module.weight.double(), share * before + (1 - share) * after, rtol=0, atol=1e-6)
    assert teacher(torch.zeros(1, 64)).dtype == torch.float32


def test_float64_stays_float64():
    assert EMATeacher(nn.Linear(2, 2).double()).module.weight.dtype == torch.float64


def test_a_resumed_average_equals_an_uninterrupted_one_to_the_bit():
    model = net()
    teacher = EMATeacher(model)
    for step in range(1, 21):
        walk(model, step)
        teacher.update(model, step)
        if step == 10:
            file = io.BytesIO()
            torch.save({"model": model.state_dict(), "ema": teacher.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed_model = net()
    resumed = EMATeacher(resumed_model)
    resumed_model.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["ema"])
    for step in range(11, 21):
        walk(resumed_model, step)
        resumed.update(resumed_model, step)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_tied_weights_are_averaged_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

    model = Tied()
    teacher = EMATeacher(model, decay=0.9, warmup=False)
    nn.init.zeros_(model.first.weight)
    teacher.update(model, 1)
    nn.init.ones_(model.first.weight)
    teacher.update(model, 2)
    torch.testing.assert_close(teacher.module.second.weight, torch.full((3, 3), 0.1))


def test_the_teacher_is_frozen_in_eval_and_apart_from_the_student():
    model = net()
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    teacher = EMATeacher(model)
    nn.ModuleList([teacher]).train()
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = copy.deepcopy(teacher.module.state_dict())
    walk(model, 0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())


def test_a_compiled_model_is_followed_by_its_plain_self():
    model = net()
    compiled = torch.compile(model, backend="eager")
    teacher = EMATeacher(compiled)
    walk(model, 0)
    teacher.update(compiled, 1)
    assert set(teacher.module.state_dict()) == set(model.state_dict())
    assert torch.equal(teacher.module[0].weight, model[0].weight)


@pytest.mark.parametrize("step", [None, 0, -1, 1.5])
def test_a_step_that_would_turn_the_warm_up_off_is_refused(step):
    model = net()
    with pytest.raises(ValueError, match="step"):
        EMATeacher(model).update(model, step)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        EMATeacher(net()).update(nn.Linear(2, 2), 1)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        EMATeacher(net(), decay=decay)
