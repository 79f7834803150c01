"""Distributed training: this process among those that `torchrun` started."""

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
    """One process of a training: its device, its rank, and the number of processes."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


@contextmanager
def process_group(device: torch.device | str | None = None) -> Iterator[Process]:
    """This process alone on `device`, or as a member of the group that `torchrun` set up.

    Raises:
        ValueError: this machine has no such device.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Process(choose_device(device))
        return
    on_gpu = str(device or default_device()).startswith("cuda")
    own = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if on_gpu else device)
    if on_gpu:
        torch.cuda.set_device(own)
    # the first process renders all pages while the others wait, which may take longer than the default ten minutes
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=timedelta(days=1))
    try:
        yield Process(own, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
