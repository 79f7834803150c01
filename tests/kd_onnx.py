"""A tiny ONNX network for page images: two convolutions. Tests that import this are skipped without the extra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def write_network(file: Path, size: tuple[int, int] | tuple[str, str] = (96, 64), seed: int = 0, shape=None) -> Path:
    """A network with the outputs "brightness" and "pooled", and the inner activation "mixed".

    "brightness" (1, 2, h / 16, w / 16): of each 16 x 16 pixels the mean over all channels of the normalised page, and
    its negative. "mixed" (1, 5, h / 8, w / 8): 5 random sums of 8 x 8 pixels. "pooled" (1, 5) is no map.
    """
    random = np.random.default_rng(seed)
    mean = np.full((1, 3, 8, 8), 1 / 192, np.float32)
    weights = {
        "first": np.concatenate([mean, random.normal(0, 0.1, (4, 3, 8, 8)).astype(np.float32)]),
        "second": np.zeros((2, 5, 2, 2), np.float32),
    }
    weights["second"][0, 0], weights["second"][1, 0] = 0.25, -0.25
    nodes = [
        helper.make_node("Conv", ["page", "first"], ["mixed"], strides=[8, 8]),
        helper.make_node("Conv", ["mixed", "second"], ["brightness"], strides=[2, 2]),
        helper.make_node("ReduceMean", ["mixed"], ["pooled"], axes=[2, 3], keepdims=0),
    ]
    shape = [1, 3, *size] if shape is None else shape
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("page", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("brightness", "pooled")],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, file)
    return file
