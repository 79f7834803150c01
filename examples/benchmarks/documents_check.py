"""Does a device compute what the CPU does, for documents? Outputs and gradients of every scheme, scope and stem.

    python examples/benchmarks/documents_check.py [--device cuda] [--output check.json]

Made-up documents of one to five pages; one model of each kind with the same weights here and there, in float32 and,
where the device is fast at it, in bfloat16 (on CUDA that is another attention kernel). Ends with status 1 if a
difference is larger than rounding explains.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import docvit
from docvit.hardware import choose_device, has_fast_bf16
from docvit.model.config import POSITIONS

KINDS = {
    **{f"tiny, {name}": ("docvit_tiny_patch16", {"positions": name, "depth": 4}) for name in POSITIONS},
    **{f"tiny, {s}": ("docvit_tiny_patch16", {"scopes": s, "depth": 4}) for s in ("page", "alternate:2")},
    "compact": ("docvit_compact_patch32", {"drop_path": 0.0}),
}
LIMITS = {"float32": 1e-3, "bfloat16": 1e-1}


def documents(config: docvit.DocViTConfig) -> list[list[np.ndarray]]:
    """Pages of noise on white, upright and turned."""
    random, size, unit = np.random.default_rng(0), config.page_size, config.patch_size
    pages = [np.full((size, size * 3 // 4 // unit * unit), 255, np.uint8) for _ in range(15)]
    for page in pages:
        page[unit : int(random.integers(2, size // unit)) * unit] = random.integers(0, 256, page.shape[1])
    shown = [page if random.random() < 0.7 else page.T for page in pages]
    shown = [page if config.in_chans == 1 else page[..., None].repeat(3, -1) for page in shown]
    bounds = np.cumsum([0, 1, 2, 3, 4, 5])
    return [shown[start:stop] for start, stop in itertools.pairwise(bounds)]


def results(model: nn.Module, batch: docvit.PatchSequence, *, bf16: bool) -> dict[str, torch.Tensor]:
    """Logits, and the gradient of every weight, on the CPU in float32."""
    model.zero_grad()
    with torch.autocast(batch.patches.device.type, torch.bfloat16, enabled=bf16):
        logits = model(batch)
    logits.float().square().mean().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: value.detach().float().cpu() for name, value in {"logits": logits, **gradients}.items()}


def apart(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest distance between two tensors, relative to their norm, or to a thousandth of the largest norm."""
    largest = max(float(value.norm()) for value in theirs.values())
    return max(float((ours[n] - theirs[n]).norm() / max(float(theirs[n].norm()), 1e-3 * largest)) for n in theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a device with the CPU.")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, help="JSON")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = False  # the comparison is of float32
    precisions = {"float32": False} | ({"bfloat16": True} if has_fast_bf16(device) else {})
    found: dict[str, dict[str, float]] = {}
    for name, (variant, settings) in KINDS.items():
        torch.manual_seed(0)
        here = docvit.create_model(variant, num_classes=8, **settings)
        batch, there = here.pack(documents(here.config)), copy.deepcopy(here).to(device)
        expected = results(here, batch, bf16=False)
        found[name] = {
            p: apart(results(there, batch.to(device), bf16=bf16), expected) for p, bf16 in precisions.items()
        }
        print(f"{name:>24}: " + "  ".join(f"{p} {v:.1e} (limit {LIMITS[p]:.0e})" for p, v in found[name].items()))
    if arguments.output is not None:
        about = {"device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)}
        about["torch"] = torch.__version__
        arguments.output.write_text(json.dumps({**about, "differences": found, "limits": LIMITS}, indent=2) + "\n")
    sys.exit(any(not value <= LIMITS[p] for differences in found.values() for p, value in differences.items()))


if __name__ == "__main__":
    main()
