"""`DocViT`'s ways in and out as functions: load, save, adapt."""

from __future__ import annotations

import os
from typing import Any

import torch

from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError
from docvit.model.folder import BUNDLED, CONFIG, WEIGHTS

__all__ = ["BUNDLED", "CONFIG", "WEIGHTS", "ModelError", "adapt", "load_pretrained", "save_pretrained"]


def load_pretrained(folder: str | os.PathLike[str] | None = None) -> DocViT:
    """See `DocViT.from_pretrained`."""
    return DocViT.from_pretrained(folder)


def save_pretrained(model: DocViT, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """See `DocViT.save_pretrained`."""
    model.save_pretrained(folder, dtype=dtype)


def adapt(model: DocViT, **overrides: Any) -> DocViT:
    """See `DocViT.adapt`."""
    return model.adapt(**overrides)
