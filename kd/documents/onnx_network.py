"""An ONNX network for page images, of which one output, or one activation inside it, is a teacher's map."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from docvit.documents.rendering import Rendering
from kd.config import DistillationError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in 0..1

DYNAMIC = {"size": 640, "multiple": 32}  # how pages are drawn for a network that takes any size

MAX_LISTED = 12

ADDRESS = re.compile(r"(.+?\.onnx)(?::(.*))?", re.IGNORECASE | re.DOTALL)


def is_onnx(teacher: object) -> bool:
    """Whether a teacher is named as FILE.onnx:OUTPUT."""
    return isinstance(teacher, str) and ADDRESS.fullmatch(teacher) is not None


class OnnxNetwork:
    """A page to a map (C, h, w), on one thread: `OnnxNetwork("layout.onnx:relu_5")`.

    A page is drawn at the size of the network's input, stretched where its proportions are others, so that rows and
    columns of the map are equal shares of the page's height and width. For an input of any size the page keeps its
    proportions, with 640 pixels along its longer side. Pixels are RGB, normalised with ImageNet's mean and deviation.
    What the output does not need is cut off and not computed.

    Attributes:
        name: file without suffix, and output.
        channels: C.
        sha256: of the file.

    Raises:
        DistillationError: the extra is not installed, there is no such file or output, the file is no ONNX network, its
            input is no image, or the output is no map.
    """

    def __init__(self, address: str) -> None:
        found = ADDRESS.fullmatch(address)
        if found is None:
            raise DistillationError(f"{address}: write FILE.onnx:OUTPUT")
        self.file, self.output = Path(found[1]), found[2] or ""
        self.name = f"{self.file.stem}:{self.output}"
        model = _load(self.file)
        _expose(model, self.output, self.file)
        self.sha256 = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self._session = _start(model, self.file)
        self.size = self._input_size()  # (height, width); None for any
        height, width = self.size or (DYNAMIC["size"], DYNAMIC["size"])
        self.channels = len(self(np.full((height, width, 3), 255, np.uint8)))

    def _input_size(self) -> tuple[int, int] | None:
        inputs = self._session.get_inputs()
        described = ", ".join(f"{i.name} {_shape(i.shape)} {i.type}" for i in inputs)
        shape = inputs[0].shape if len(inputs) == 1 and inputs[0].type == "tensor(float)" else []
        if len(shape) != 4 or shape[1] != 3:
            raise DistillationError(f"{self.file} does not take one RGB image (1, 3, height, width) but {described}")
        known = [side for side in shape[2:] if isinstance(side, int)]
        return (known[0], known[-1]) if known else None

    def rendering(self, renderer: str) -> Rendering:
        """How pages are drawn for the network, before they are stretched to `size`."""
        if self.size is None:
            return Rendering(renderer, DYNAMIC["size"], DYNAMIC["multiple"])
        return Rendering(renderer, max(self.size), multiple=1)

    def __call__(self, page: np.ndarray) -> Tensor:
        """The map (C, h, w) of a page (H, W, 3) in uint8."""
        if self.size is not None and page.shape[:2] != self.size:
            page = np.asarray(Image.fromarray(page).resize(self.size[::-1], Image.Resampling.BILINEAR))
        pixels = ((page / np.float32(255) - np.array(MEAN)) / np.array(STD)).astype(np.float32)
        image = np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]
        try:
            (found,) = self._session.run(None, {self._session.get_inputs()[0].name: image})
        except Exception as error:  # onnxruntime has a class of its own for each
            raise DistillationError(f"{self.file} fails on a page of {page.shape[:2]}: {_first_line(error)}") from error
        if not isinstance(found, np.ndarray) or found.ndim != 4 or len(found) != 1 or found.dtype.kind != "f":
            shape = _shape(getattr(found, "shape", ()))
            raise DistillationError(f"{self.output} of {self.file} is no map (1, channels, rows, columns) but {shape}")
        return torch.from_numpy(found[0].astype(np.float32))


def _load(file: Path) -> Any:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        from google.protobuf.message import DecodeError
    except ModuleNotFoundError as error:
        raise DistillationError(f'a teacher from {file} needs {error.name}: pip install "docvit[teachers]"') from error
    try:
        model = onnx.load(file)
    except FileNotFoundError:
        raise DistillationError(f"there is no file {file}: check the path of the teacher") from None
    except (OSError, DecodeError) as error:
        raise DistillationError(f"{file} is not an ONNX network: {_first_line(error)}") from error
    if not model.graph.node:
        raise DistillationError(f"{file} is not an ONNX network: it holds no graph")
    return model


def _expose(model: Any, output: str, file: Path) -> None:
    """Makes `output` the only output of the network, and leaves the nodes that it needs."""
    import onnx

    graph = model.graph
    declared = [value.name for value in graph.output]
    inner = [name for node in reversed(graph.node) for name in node.output if name and name not in declared]
    if output not in (*declared, *inner):
        listed = ", ".join([*declared, *inner][:MAX_LISTED])
        more = f" and {len(declared) + len(inner) - MAX_LISTED} more before them" if len(inner) > MAX_LISTED else ""
        asked = f"{file} has no output {output!r}" if output else f"which output of {file} (write FILE.onnx:OUTPUT)"
        raise DistillationError(f"{asked}: there are {listed}{more}")
    kept, wanted = [], {output}
    for node in reversed(graph.node):  # in which every node stands behind those that it reads
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(_read_by(node))
    inputs = [value for value in graph.input if value.name in wanted]
    outputs = [onnx.ValueInfoProto(name=output)]
    weights = [weight for weight in graph.initializer if weight.name in wanted]
    model.graph.CopyFrom(onnx.helper.make_graph(kept[::-1], "teacher", inputs, outputs, weights))


def _read_by(node: Any) -> Iterator[str]:
    """Names of the tensors that a node reads, also within its branches and loops."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)


def _start(model: Any, file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class of its own for each
        raise DistillationError(f"onnxruntime cannot run {file}: {_first_line(error)}") from error


def _shape(sides: Any) -> str:
    return f"({', '.join(map(str, sides))})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
