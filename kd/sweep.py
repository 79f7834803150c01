"""Networks that train side by side, and what networks are worth: one pass of the data for as many as there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.hardware import has_fast_bf16
from docvit.training.loop import Record

InputsOf = Callable[[Any], Any]

images_of: InputsOf = attrgetter("images")


class Sweep(nn.Module):
    """Networks by name, each fed the same inputs: the outputs by name.

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


def by_name(outputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A sweep's outputs as they are; those of a single network under the empty name."""
    return {"": outputs} if isinstance(outputs, Tensor) else outputs


def join(name: str, part: str) -> str:
    """What a figure of a network is called: "alpha 0.5/loss", and just "loss" under the empty name."""
    return f"{name}/{part}" if name else part


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
def measure(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    inputs_of: InputsOf = images_of,
    device: torch.device | str | None = None,
    bf16: bool | None = None,
) -> Record:
    """`loss` (cross-entropy) and `accuracy` (0..1) over all batches, those of a `Sweep` by name (`alpha 0.5/loss`).

    On the device of the model's weights, and in bfloat16 where that is fast at it, unless told. For `distill`:
    `evaluate=partial(measure, batches=test)`.
    """
    place = next(model.parameters(), torch.empty(0)).device if device is None else torch.device(device)
    bf16 = has_fast_bf16(place) if bf16 is None else bf16
    sums: dict[str, Tensor] = {}
    count = 0
    with evaluating(model), torch.autocast(place.type, torch.bfloat16, enabled=bf16):
        for batch in batches:
            batch = batch.to(place)
            count += len(batch.labels)
            for name, logits in by_name(model(inputs_of(batch))).items():
                figures = {
                    "loss": F.cross_entropy(logits.float(), batch.labels, reduction="sum").double(),
                    "accuracy": (logits.argmax(dim=1) == batch.labels).sum(),
                }
                for part, value in figures.items():
                    key = join(name, part)
                    sums[key] = sums[key] + value if key in sums else value
    return {key: float(value) / count for key, value in sums.items()}
