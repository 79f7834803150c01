"""What teachers have said, kept on disk: a student that sees the same views again need not ask them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from docvit.files import replaced, write_tensors
from docvit.model.docvit import DocViT
from docvit.training.run_folder import differences
from kd.distill import DistillationError

logger = logging.getLogger(__name__)

MANIFEST = "cache.json"


class TeacherCache:
    """Outputs of teachers in `folder`, one safetensors file a batch.

    A batch is kept whole, as the run that asked computed it: with other documents beside it a teacher's last bits
    differ, and a cached run shall equal a live one. `settings` say everything else that the outputs depend on, the
    teachers among it; they lie in `cache.json`, and a folder of other settings is refused.

    Raises:
        DistillationError: the folder holds outputs under other settings, or something else; says what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        asked = json.loads(json.dumps(settings))
        file = self.folder / MANIFEST
        if self.folder.exists() and not self.folder.is_dir():
            raise DistillationError(f"{self.folder} is not a folder: choose another one for the teacher's outputs")
        # a manifest half written is another process's, or what an interruption left
        others = self.folder.is_dir() and any(f.suffix != ".tmp" for f in self.folder.iterdir())
        if file.is_file():
            _check(file, asked)
        elif others:
            raise DistillationError(f"{self.folder} is not empty and holds no {MANIFEST}: choose another folder")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replaced(file) as partial:
                partial.write_text(json.dumps(asked, indent=1) + "\n")

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The outputs for a batch; None if they are not there, or damaged."""
        try:
            with safe_open(self._file(key), "pt") as found:
                # cloned: what lies in the mapped file is not aligned as tensors are
                return {name: found.get_tensor(name).clone() for name in found.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            logger.warning("%s is damaged and will be written anew: %s", self._file(key), error)
            return None

    def write(self, key: str, told: Mapping[str, Tensor]) -> None:
        write_tensors(self._file(key), told)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def batch_key(epoch: int, documents: Sequence[tuple[int, str]]) -> str:
    """Name of a batch: its epoch and, in order, the place in the data set and the content of its documents.

    With the seed and the view, which are the same for a whole cache, these decide what is seen of them.
    """
    content = hashlib.sha256(json.dumps(documents).encode()).hexdigest()
    return f"{epoch:04d}-{content[:24]}"


def fingerprint(model: DocViT) -> str:
    """SHA-256 of a model's settings and weights."""
    digest = hashlib.sha256(json.dumps(model.config.as_dict(), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check(file: Path, asked: Any) -> None:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DistillationError(f"{file} is damaged: {error}") from error
    differing = differences(found, asked)
    if differing:
        raise DistillationError(
            f"{file.parent} holds what was said by other teachers or of other views: {'; '.join(differing)}"
        )
