"""`Sweep`: one network per setting of the loss (alpha 0.5, alpha 0.8), trained side by side; and `measure` of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from docvit.hardware import has_fast_bf16
from docvit.training.loop import Record
from kd.batches import LoaderBatches
from kd.student import without_projections
from kd.teacher import Outputs, image_outputs


class Sweep(nn.Module):
    """One network per setting of the loss, by the setting's name; each is fed the same inputs: the outputs by name.

    Trained on the sum of their losses, every network gets the gradient it would get alone, so with an optimiser that
    treats weights one by one (SGD, Adam) and no clipping each learns what it would learn alone, to the bit on the CPU.
    Networks that draw random numbers in training (dropout) draw others than alone.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not networks:
            raise ValueError("a sweep needs at least one network")
        self.names = tuple(networks)
        self.networks = nn.ModuleList(networks.values())  # a ModuleDict takes no names with dots, such as "alpha 0.5"

    def forward(self, inputs: Any) -> dict[str, Tensor]:
        return {name: network(inputs) for name, network in zip(self.names, self.networks, strict=True)}

    def __getitem__(self, name: str) -> nn.Module:
        return self.networks[self.names.index(name)]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and afterwards every module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def logits_of(model: nn.Module, batch: Any, outputs: Outputs, *, bf16: bool) -> list[Tensor]:
    """Logits (B, C) in eval mode of a network, or of each network of a `Sweep`."""
    with evaluating(model), torch.autocast(batch.labels.device.type, torch.bfloat16, enabled=bf16):
        return [outputs(without_projections(network), batch, ["logits"])["logits"] for network in _networks(model)]


def named_records(model: nn.Module, records: Iterable[Mapping[str, float]]) -> Record:
    """One record for each network of a `Sweep` as one ("alpha 0.5/loss"); that of a single network as it is."""
    if not isinstance(model, Sweep):
        (record,) = records
        return dict(record)
    named = zip(model.names, records, strict=True)
    return {f"{name}/{key}": value for name, record in named for key, value in record.items()}


def measure(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    outputs: Outputs = image_outputs,
    device: torch.device | str | None = None,
    bf16: bool | None = None,
) -> Record:
    """`loss` (cross-entropy) and `accuracy` (0..1) over all batches, those of a `Sweep` by name (`alpha 0.5/loss`).

    By default on the device of the model's weights, and in bfloat16 where that device is fast at it. For `distill`:
    `evaluate=partial(measure, batches=test)`; `batches` may be a DataLoader of (inputs, labels).
    """
    device = next(model.parameters(), torch.empty(0)).device if device is None else torch.device(device)
    bf16 = has_fast_bf16(device) if bf16 is None else bf16
    sums: list[dict[str, Any]] = [{"loss": 0.0, "accuracy": 0.0} for _ in _networks(model)]  # on the device
    count = 0
    for batch in LoaderBatches(batches) if isinstance(batches, DataLoader) else batches:
        batch = batch.to(device)
        count += len(batch.labels)
        for values, logits in zip(sums, logits_of(model, batch, outputs, bf16=bf16), strict=True):
            values["loss"] += F.cross_entropy(logits.float(), batch.labels, reduction="sum").double()
            values["accuracy"] += (logits.argmax(dim=1) == batch.labels).sum()
    return named_records(model, [{key: float(value) / count for key, value in values.items()} for values in sums])


def _networks(model: nn.Module) -> list[nn.Module]:
    return list(model.networks) if isinstance(model, Sweep) else [model]
