"""`EMATeacher`: a moving average of a model's weights that predicts in its place."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from docvit.errors import SettingError


class EMATeacher(nn.Module):
    """A frozen copy of `model`, in eval, that follows it: average = d * average + (1 - d) * model after each step.

    The first update copies the model; update n uses d = `decay`, or with `warmup`
    min(decay, 1 - n ** (-2 / 3)): a fixed .9999 hardly leaves the initial weights in 6,000 steps, and a run of a few
    hundred steps averages over its last part.

    - Weights of half precision are averaged in float32, since (1 - d) of a change is below bfloat16's resolution: feed
      `.module` float32 images, or run it under autocast.
    - Floating-point buffers are averaged too: BatchNorm's running statistics describe the activations of the weights
      they came with, and averaged over the same steps they fit the averaged weights better than the student's latest.
      Integer and boolean buffers (`num_batches_tracked`) are copied.
    - `state_dict` and `load_state_dict` hold the whole state: d depends on the step alone.

    `model` may be compiled or wrapped for data parallelism; `.module` is the plain network, and it is what predicts.
    Source: Tarvainen and Valpola, "Mean teachers are better role models", arXiv 1703.01780; the warm-up is that of
    timm's `ModelEmaV3`.
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999, warmup: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise SettingError(f"the decay must lie in 0..1 and below 1, not {decay}")
        self.decay, self.warmup = decay, warmup
        self.module = deepcopy(_unwrap(model)).requires_grad_(False)
        self.module.zero_grad(set_to_none=True)
        for tensor in _tensors(self.module):
            if tensor.dtype in (torch.float16, torch.bfloat16):
                tensor.data = tensor.data.float()
        self.train(False)

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow `model` after gradient step number `step`, counted from 1 for the first of the run.

        Raises `ValueError` for a step that is no such number and for a model with other parameters.
        """
        if not isinstance(step, int) or step < 1:
            raise SettingError(f"step is the number of gradient steps done, 1 or more, not {step!r}")
        averages, values = [], []
        for average, value in zip(_tensors(self.module), _tensors(_unwrap(model)), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value.to(average.device, average.dtype))
            else:
                average.copy_(value)
        get_ema_multi_avg_fn(self._decay_of(step))(averages, values, None)

    def _decay_of(self, step: int) -> float:
        if step == 1:
            return 0.0
        return min(self.decay, 1 - step ** (-2 / 3)) if self.warmup else self.decay

    def copy_to(self, model: nn.Module) -> None:
        """Give `model` the averaged weights."""
        _unwrap(model).load_state_dict(self.module.state_dict())

    def train(self, mode: bool = True) -> EMATeacher:
        """A teacher stays in eval, whatever is asked of the wrapper around it."""
        super().train(False)
        return self


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())  # each shared tensor once


def _unwrap(model: nn.Module) -> nn.Module:
    """The plain network inside what `torch.compile` and `DistributedDataParallel` return."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return _unwrap(model.module)
    inner = getattr(model, "_orig_mod", None)
    return _unwrap(inner) if isinstance(inner, nn.Module) else model
