"""Model folders: save, load, adapt, and the Hugging Face hub."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor

from docvit.errors import UserError
from docvit.files import replaced, write_tensors
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.positions import interpolate_1d, interpolate_2d

BUNDLED = Path(__file__).parents[1] / "weights"

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class ModelError(UserError):
    """A model that cannot be loaded or converted; the message says why and what to do."""


def save_pretrained(model: DocViT, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Writes `config.json` and `model.safetensors` into `folder`, creating it; each file is replaced in one step."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    state = {n: v.to(dtype) if dtype and v.is_floating_point() else v for n, v in model.state_dict().items()}
    write_tensors(path / WEIGHTS, state, {"format": "pt"})
    with replaced(path / CONFIG) as partial:
        partial.write_text(json.dumps(model.config.as_dict(), indent=2) + "\n")


def load_pretrained(folder: str | os.PathLike[str] | None = None) -> DocViT:
    """A DocViT in eval mode, weights in float32.

    Args:
        folder: a folder written by `save_pretrained`, a Hugging Face hub id (`user/model`), or None for the model in
            the box, which needs no network.

    Raises:
        ModelError: neither a model folder nor a hub repository that can be reached, or weights that do not fit.
    """
    path = BUNDLED if folder is None else Path(folder)
    if folder is not None and not path.is_dir():
        path = _from_hub(str(folder))
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        raise ModelError(f"{path} is not a model folder: {' and '.join(missing)} missing")
    try:
        model = DocViT(DocViTConfig.from_dict(json.loads((path / CONFIG).read_text())))
        model.load_state_dict(load_file(path / WEIGHTS))  # into float32, whatever is in the file
    except Exception as error:  # JSON, settings, safetensors and shapes each raise their own kinds
        told = " ".join(str(error).split("\n\t")[:2])  # torch lists every single weight
        advice = " If another version of docvit wrote it, train it again." if "mismatch" in told else ""
        raise ModelError(f"{path} cannot be loaded: {told}{advice}") from error
    return model.eval()


def _from_hub(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub's client and the HTTP library below it each raise their own kinds
        raise ModelError(f"{name!r} is neither a model folder nor a hub model that can be reached") from error


def adapt(model: DocViT, **overrides: Any) -> DocViT:
    """A copy of `model` under other settings, with every weight that still fits; tables are resampled, corners kept.

    A head of another number of classes, other class names or another width of feature begins afresh.
    """
    if overrides.get("num_classes", model.config.num_classes) != model.config.num_classes:
        overrides = {"classes": (), **overrides}  # the old names are of other classes
    config = replace(model.config, **overrides)
    result = DocViT(config)
    own = result.state_dict()
    same_head = config.num_classes == model.config.num_classes and config.classes in (model.config.classes, ())
    same_head = same_head and result.num_features == model.num_features
    for name, value in model.state_dict().items():
        if name not in own or (name.startswith("head.") and not same_head):
            continue
        own[name] = _resample(value, own[name]) if name.startswith("positions.") else value
    try:
        result.load_state_dict(own)
    except RuntimeError as error:
        raise ModelError(f"the weights do not fit the settings asked for: {error}") from error
    return result


def _resample(table: Tensor, like: Tensor) -> Tensor:
    if table.shape == like.shape or table.ndim != like.ndim or table.shape[-1] != like.shape[-1]:
        return table
    axes = [torch.linspace(0, old - 1, new) for old, new in zip(table.shape[:-1], like.shape[:-1], strict=True)]
    if len(axes) == 1:
        return interpolate_1d(table.float(), axes[0])
    row, col = (a.flatten() for a in torch.meshgrid(*axes, indexing="ij"))
    return interpolate_2d(table.float(), row, col).reshape(like.shape)
