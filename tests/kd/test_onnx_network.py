"""ONNX networks as they are opened: which output, which input, what is cut off, and errors of one line."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from kd_onnx import TensorProto, helper, onnx, write_network

from kd.config import DistillationError
from kd.documents import onnx_network
from kd.documents.onnx_network import OnnxNetwork, is_onnx

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture
def file(tmp_path):
    return write_network(tmp_path / "tiny.onnx")


def brightness(page):
    """What the network gives, computed otherwise: normalised means of blocks of 16 x 16 pixels."""
    values = ((page / 255 - MEAN) / STD).mean(2)
    rows, cols = (side // 16 for side in values.shape)
    return values.reshape(rows, 16, cols, 16).mean((1, 3))


def test_an_output_and_an_activation_inside_are_maps_of_the_normalised_page(file):
    page = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    network = OnnxNetwork(f"{file}:brightness")
    assert (network.channels, network.size, network.name) == (2, (96, 64), "tiny:brightness")
    np.testing.assert_allclose(network(page)[0], brightness(page), atol=1e-4)
    inner = OnnxNetwork(f"{file}:mixed")
    assert inner.channels == 5
    assert inner(page).shape == (5, 12, 8)
    blocks = inner(page)[0].reshape(6, 2, 4, 2).mean((1, 3))
    torch.testing.assert_close(blocks, network(page)[0])


def test_a_page_is_stretched_to_the_input_so_that_fractions_correspond(file):
    network = OnnxNetwork(f"{file}:brightness")
    rendering = network.rendering("pdfium")
    assert (rendering.size, rendering.multiple, rendering.mode) == (96, 1, "RGB")
    page = np.full((60, 200, 3), 255, np.uint8)
    page[:30, 150:] = 0  # the upper half of the right quarter
    dark = network(page)[0] < 0
    expected = torch.zeros(6, 4, dtype=torch.bool)
    expected[:3, 3:] = True
    assert torch.equal(dark, expected)


def test_a_network_of_any_input_size_gets_pages_as_they_are_drawn(tmp_path):
    network = OnnxNetwork(f"{write_network(tmp_path / 'any.onnx', ('h', 'w'))}:brightness")
    assert network.size is None
    rendering = network.rendering("poppler")
    assert (rendering.renderer, rendering.size, rendering.multiple) == ("poppler", 640, 32)
    page = np.random.default_rng(0).integers(0, 256, (32, 160, 3), np.uint8)
    np.testing.assert_allclose(network(page)[0], brightness(page), atol=1e-4)


def test_what_the_output_does_not_need_is_cut_off(file, monkeypatch):
    started = []
    monkeypatch.setattr(
        onnx_network, "_start", lambda model, file: started.append(model) or (_ for _ in ()).throw(KeyError)
    )
    with pytest.raises(KeyError):
        OnnxNetwork(f"{file}:mixed")
    assert [node.output[0] for node in started[0].graph.node] == ["mixed"]
    assert [weight.name for weight in started[0].graph.initializer] == ["first"]


def test_what_branches_read_is_not_cut_off(tmp_path):
    page = helper.make_tensor_value_info("page", TensorProto.FLOAT, [1, 3, 8, 8])

    def branch(sign):
        node = helper.make_node(sign, ["doubled"], [f"{sign}_out"])
        return helper.make_graph(
            [node], sign, [], [helper.make_tensor_value_info(f"{sign}_out", TensorProto.FLOAT, None)]
        )

    nodes = [
        helper.make_node("Add", ["page", "page"], ["doubled"]),
        helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True])),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=branch("Neg"), else_branch=branch("Abs")),
    ]
    outputs = [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, None)]
    model = helper.make_model(helper.make_graph(nodes, "branches", [page], outputs), ir_version=8)
    model.opset_import[0].version = 13
    onnx.save(model, tmp_path / "if.onnx")
    white = OnnxNetwork(f"{tmp_path / 'if.onnx'}:chosen")(np.full((8, 8, 3), 255, np.uint8))
    np.testing.assert_allclose(white[:, 0, 0], -2 * (1 - MEAN) / STD, rtol=1e-5)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [("a/b.onnx:out", True), ("b.ONNX:x:y", True), ("b.onnx", True), ("self", False), ("folder", False), (3, False)],
)
def test_which_teachers_are_onnx_networks(teacher, expected):
    assert is_onnx(teacher) is expected


def test_errors_are_one_line_that_says_what_to_do(file, tmp_path):
    (tmp_path / "text.onnx").write_text("this is no network")
    (tmp_path / "empty.onnx").touch()
    grey = write_network(tmp_path / "grey.onnx", shape=[1, 1, 96, 64])
    for address, words in {
        f"{tmp_path}/none.onnx:x": "there is no file .*none.onnx: check the path",
        f"{tmp_path}/text.onnx:x": "text.onnx is not an ONNX network",
        f"{tmp_path}/empty.onnx:x": "empty.onnx is not an ONNX network: it holds no graph",
        f"{file}:other": "tiny.onnx has no output 'other': there are brightness, pooled, mixed$",
        f"{file}": r"which output of .*tiny.onnx \(write FILE.onnx:OUTPUT\): there are brightness, pooled, mixed$",
        f"{file}:pooled": r"pooled of .*tiny.onnx is no map \(1, channels, rows, columns\) but \(1, 5\)$",
        f"{grey}:mixed": r"takes? .*one RGB image \(1, 3, height, width\) but page \(1, 1, 96, 64\) tensor\(float\)$",
    }.items():
        with pytest.raises(DistillationError, match=words) as error:
            OnnxNetwork(address)
        assert "\n" not in str(error.value)


def test_at_most_a_dozen_outputs_are_listed(tmp_path):
    nodes = [helper.make_node("Neg", [f"t{i}"], [f"t{i + 1}"]) for i in range(30)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("t0", "t30")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "long", ends[:1], ends[1:])), tmp_path / "long.onnx")
    with pytest.raises(DistillationError, match=r"there are t30, t29, .*, t19 and 18 more before them$"):
        OnnxNetwork(f"{tmp_path / 'long.onnx'}:x")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_the_extra_the_error_says_how_to_get_it(file, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DistillationError, match=rf'needs {package}: pip install "docvit\[teachers\]"'):
        OnnxNetwork(f"{file}:mixed")
