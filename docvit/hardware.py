"""What the machine at hand is good at."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import nn

from docvit.errors import SettingError

Item = TypeVar("Item")
Result = TypeVar("Result")
Module = TypeVar("Module", bound=nn.Module)


def default_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_device(name: torch.device | str | None = None) -> torch.device:
    """The device called `name`, or `default_device()`.

    Raises:
        ValueError: this machine has no such device.
    """
    name = name or default_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # which, depends on how torch was built
        raise SettingError(f"no device {str(name)!r} on this machine: choose cpu, or cuda given a GPU") from error


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether matrix products there are faster in bfloat16 than in float32: GPUs, and CPUs with instructions for it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this; where the private one is missing, float32 is always right
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


def cast_linear(model: Module) -> Module:
    """A copy for inference whose linear layers hold bfloat16 weights; all else is shared with `model`.

    Under autocast it gives the same numbers to the bit, but the weights are not cast anew in every forward. What is
    shared follows the model: do not change that while the copy is in use.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        if isinstance(module, nn.Linear):
            for name, weight in module.named_parameters(recurse=False):
                if weight.dtype == torch.float32:  # autocast leaves float64 alone
                    setattr(module, name, nn.Parameter(weight.detach().bfloat16(), requires_grad=False))
    return copied


def cpu_streams() -> int:
    """How many batches to run side by side on the CPU: a thread each on a small machine, a quarter of a larger one."""
    return min(4, torch.get_num_threads())


def in_streams(function: Callable[[Item], Result], items: Iterable[Item], streams: int) -> Iterator[Result]:
    """`map(function, items)` on `streams` threads that share the cores; in order, 3 * `streams` items ahead at most.

    The first item has all cores to itself, and its result is given before the second is taken.
    """
    if streams <= 1:
        yield from map(function, items)
        return
    items = iter(items)
    for first in islice(items, 1):
        yield function(first)
    cores = torch.get_num_threads()
    waiting: deque[Future[Result]] = deque()
    try:
        with ThreadPoolExecutor(streams, initializer=torch.set_num_threads, initargs=(cores // streams,)) as pool:
            for item in items:
                waiting.append(pool.submit(function, item))
                # so many ahead that while a long item holds one stream, the others have work
                while waiting and (waiting[0].done() or len(waiting) >= 3 * streams):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(cores)  # the number is also that of threads to come
