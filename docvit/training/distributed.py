"""This process among those of `torchrun`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from docvit.hardware import choose_device, default_device


class Process(NamedTuple):
    """Where a process trains, and which of how many processes it is."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


@contextmanager
def process_group(device: torch.device | str | None = None) -> Iterator[Process]:
    """This process alone on `device`, or its place in the group that `torchrun` set up.

    Raises:
        ValueError: this machine has no such device.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Process(choose_device(device))
        return
    on_gpu = str(device or default_device()).startswith("cuda")
    place = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else device)
    if on_gpu:
        torch.cuda.set_device(place)
    # the first process draws all pages before the others go on, which may take longer than the usual ten minutes
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield Process(place, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
