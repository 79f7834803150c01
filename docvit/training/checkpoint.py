"""A run's state in one safetensors file: tensors, and everything else as JSON in the metadata; no pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from docvit.errors import UserError
from docvit.files import write_tensors

_TENSOR = "__tensor__"


class CheckpointError(UserError):
    """The file is not a valid checkpoint."""


def save_checkpoint(file: Path, state: dict[str, Any]) -> None:
    """Writes nested dicts and lists of tensors and plain values; the file is replaced in one step.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _extract(state, tensors)
    write_tensors(file, tensors, {"state": json.dumps(skeleton)})


def load_checkpoint(file: Path) -> dict[str, Any]:
    """Reads what `save_checkpoint` wrote; tuples come back as lists.

    Raises:
        CheckpointError: the file is damaged, or not a checkpoint.
    """
    try:
        with safe_open(file, "pt") as archive:
            state: dict[str, Any] = _restore(json.loads(archive.metadata()["state"]), archive)
            return state
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error})") from error


def _extract(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, dict):
        # pairs, since JSON would turn the integer keys of optimisers into strings
        return {"keys": [[k, _extract(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_extract(v, tensors) for v in value]
    return value


def _restore(value: Any, archive: Any) -> Any:
    if isinstance(value, dict):
        if _TENSOR in value:
            return archive.get_tensor(value[_TENSOR])
        return {k: _restore(v, archive) for k, v in value["keys"]}
    if isinstance(value, list):
        return [_restore(v, archive) for v in value]
    return value
