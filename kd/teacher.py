"""The teacher: frozen networks that only predict, and a disk cache of what they predicted."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from docvit.files import write_tensors
from docvit.training.ema import EMATeacher
from docvit.training.run_folder import open_folder

logger = logging.getLogger(__name__)

MANIFEST = "cache.json"

Outputs = Callable[[nn.Module, Any, Sequence[str]], Mapping[str, Tensor]]
"""outputs(model, batch, names) -> tensors by name: all that the engine has to know of a kind of data.

Every kind has "logits" (B, C).
"""


def image_outputs(model: nn.Module, batch: Any, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Of a network that takes `batch.images`: its logits."""
    return {"logits": model(batch.images)}


class Teacher(nn.Module):
    """Networks that only predict: in eval and without gradients, whatever is asked of what contains them.

    Args:
        networks: one, or an ensemble, whose softened probabilities are averaged. An `EMATeacher` stands for the
            network inside.
        outputs: see `Outputs`.
        view: (batch, number of the network) -> what this network sees of the batch; by default the batch itself.
        known: batch -> outputs that were computed before; None where there are none.
    """

    def __init__(
        self,
        networks: nn.Module | Sequence[nn.Module],
        outputs: Outputs = image_outputs,
        *,
        view: Callable[[Any, int], Any] = lambda batch, number: batch,
        known: Callable[[Any], Mapping[str, Tensor] | None] | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        given = [networks] if isinstance(networks, nn.Module) else networks
        self.networks = nn.ModuleList(n.module if isinstance(n, EMATeacher) else n for n in given)
        self.view, self.known = view, known
        self._outputs = torch.compile(outputs) if compile else outputs
        self.train(False)

    def train(self, mode: bool = True) -> Teacher:
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, batch: Any, names: Sequence[str]) -> Mapping[str, Tensor]:
        """Outputs by the network's number and their name, "0.logits"; nothing is asked without `names`."""
        if not names:
            return {}
        if self.known is not None and (found := self.known(batch)) is not None:
            return found
        # a network may be part of something else too, which its owner puts in training mode
        if any(module.training for module in self.networks.modules()):
            self.networks.eval()
        computed: dict[str, Tensor] = {}
        for number, network in enumerate(self.networks):
            given = self._outputs(network, self.view(batch, number), names)
            computed |= {f"{number}.{name}": given[name] for name in names}
        return computed


def ensemble_logits(outputs: Mapping[str, Tensor], name: str, temperature: float) -> Tensor:
    """Logits of the only network as they are; of several, those whose softened probabilities are the mean of theirs.

    `outputs` are `Teacher`'s, `name` is that of the logits.
    """
    given = [value for key, value in outputs.items() if key.partition(".")[2] == name]
    if len(given) == 1:
        return given[0]
    softened = torch.stack([logits.float().div(temperature).log_softmax(1) for logits in given])
    return temperature * (softened.logsumexp(0) - math.log(len(given)))


class TeacherCache:
    """Outputs of teachers in `folder`, one safetensors file per batch.

    A batch is kept whole, as the run that asked computed it: with other documents beside it a teacher's last bits
    differ, and a cached run shall equal a live one. `settings` say everything else that the outputs depend on, the
    teachers among it; they lie in `cache.json`.

    Raises:
        TrainingError: the folder holds outputs under other settings, or something else; says what differs.
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        open_folder(self.folder / MANIFEST, settings)

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

    def write(self, key: str, outputs: Mapping[str, Tensor]) -> None:
        write_tensors(self._file(key), outputs)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def fingerprint(model: nn.Module, settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of a model's weights, and of its settings where they are given."""
    digest = hashlib.sha256(json.dumps(settings or {}, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
