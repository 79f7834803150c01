"""What the machine at hand is good at."""

from __future__ import annotations

import torch


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
        raise ValueError(f"no device {str(name)!r} on this machine: choose cpu, or cuda given a GPU") from error


def has_fast_bf16(device: torch.device | str) -> bool:
    """Whether matrix products there are faster in bfloat16 than in float32: GPUs, and CPUs with instructions for it."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for this; where the private one is missing, float32 is always right
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())
