"""The report's CNNs: layers, counts and costs as stated there."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from kd import StudentCNN, TeacherCNN


def count_macs(model):
    """Multiply-accumulates of one image, without biases, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        model.to("meta")(torch.empty(1, 3, 32, 32, device="meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("net", "parameters"), [(StudentCNN, 3_749_038), (TeacherCNN, 21_630_414)])
def test_parameter_counts_are_the_reports(net, parameters):
    assert sum(parameter.numel() for parameter in net().parameters()) == parameters


@pytest.mark.parametrize(("net", "convolutions"), [(StudentCNN, 3), (TeacherCNN, 7)])
def test_modules_carry_the_reports_names(net, convolutions):
    names = [f"conv{number}" for number in range(1, convolutions + 1)]
    assert [name for name, _ in net().named_children()] == [*names, "pool", "fc1", "fc2"]


@pytest.mark.parametrize(
    ("net", "convolutions", "flat"),
    [
        (StudentCNN, [(3, 6, 3, 32), (6, 36, 3, 32), (36, 64, 5, 30)], 14_400),
        (
            TeacherCNN,
            [
                (3, 6, 3, 32),
                (6, 12, 3, 32),
                (12, 24, 3, 32),
                (24, 48, 3, 32),
                (48, 96, 3, 32),
                (96, 192, 5, 30),
                (192, 384, 5, 28),
            ],
            75_264,
        ),
    ],
)
def test_the_cost_is_the_closed_form(net, convolutions, flat):
    expected = sum(ins * outs * kernel**2 * side**2 for ins, outs, kernel, side in convolutions)
    assert count_macs(net()) == expected + flat * 256 + 256 * 10


def test_the_costs_are_the_reports():
    assert count_macs(StudentCNN()) / 1e6 == pytest.approx(57.7, abs=0.05)
    assert count_macs(TeacherCNN()) / 1e9 == pytest.approx(1.936, abs=0.0005)


def test_the_student_computes_what_the_report_says():
    model, images = StudentCNN(), torch.randn(2, 3, 32, 32)
    weights = model.state_dict()
    x = images
    for number in (1, 2, 3):
        x = F.conv2d(x, weights[f"conv{number}.weight"], weights[f"conv{number}.bias"], padding=1).clamp(min=0)
    x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2)).reshape(2, -1)
    x = (x @ weights["fc1.weight"].T + weights["fc1.bias"]).clamp(min=0)
    expected = x @ weights["fc2.weight"].T + weights["fc2.bias"]
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected)


def test_classes_width_and_features():
    model, images = TeacherCNN(num_classes=2, width=0.25), torch.randn(3, 3, 32, 32)
    maps = model.forward_features(images)
    assert maps.shape == (3, 96, 14, 14)
    assert model.forward_head(maps).shape == (3, 2)
    assert count_macs(model) < count_macs(TeacherCNN()) / 10


@pytest.mark.parametrize("net", [StudentCNN, TeacherCNN])
def test_he_initialisation_keeps_the_spread_that_the_default_loses(net):
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32)
    default, he = (net(init=init, width=0.5)(images).std(dim=0).mean() for init in ("default", "he"))
    assert default < 0.02
    assert 0.1 < he < 10


def test_an_unknown_initialisation_is_refused():
    with pytest.raises(ValueError, match="orthogonal"):
        StudentCNN(init="orthogonal")


def test_the_nets_compile_to_one_graph():
    model, images = StudentCNN(width=0.25), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(images), model(images))
