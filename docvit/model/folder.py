"""Model folders (`config.json` and `model.safetensors`), the bundled one, and the Hugging Face hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from docvit.files import replaced, write_tensors
from docvit.model.config import DocViTConfig
from docvit.model.errors import ModelError

BUNDLED = Path(__file__).parents[1] / "weights"

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write_folder(folder: str | os.PathLike[str], config: DocViTConfig, state: dict[str, Tensor]) -> None:
    """Writes both files into `folder`, creating it; each file is replaced in one step."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_tensors(path / WEIGHTS, state, {"format": "pt"})
    with replaced(path / CONFIG) as partial:
        partial.write_text(json.dumps(config.as_dict(), indent=2) + "\n")


def find_folder(name: str | os.PathLike[str] | None) -> Path:
    """The folder of a model: a path, a Hugging Face hub id (`user/model`), or None for the bundled model.

    Raises:
        ModelError: neither a model folder nor a hub repository that can be reached.
    """
    path = BUNDLED if name is None else Path(name)
    if name is not None and not path.is_dir():
        path = _from_hub(str(name))
    missing = [file for file in (CONFIG, WEIGHTS) if not (path / file).is_file()]
    if missing:
        raise ModelError(f"{path} is not a model folder: {' and '.join(missing)} missing")
    return path


def read_folder(path: Path) -> tuple[DocViTConfig, dict[str, Tensor]]:
    """The settings and the weights in a model folder. JSON, settings and safetensors each raise their own errors."""
    values = json.loads((path / CONFIG).read_text())
    if "max_pages" in values:  # what `page_embeddings` was called when some saved models were trained
        values["page_embeddings"] = values.pop("max_pages")
    return DocViTConfig.from_dict(values), load_file(path / WEIGHTS)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and needed for hub ids alone

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the hub's client and the HTTP library below it each raise their own kinds
        raise ModelError(f"{name!r} is neither a model folder nor a hub model that can be reached") from error
