"""Training throughput of positional schemes: forward and backward passes, relative to spatial+page in the same run.

    python examples/benchmarks/positions_speed.py --output results/positions_speed.json

One model per scheme, the same batch for all, in turns of random order. A scheme's
throughput is the median over the turns of spatial+page's time divided by its own. spatial+page itself is measured
twice per turn: its second row shows how far noise alone takes the ratio from 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import docvit
from docvit.hardware import choose_device, has_fast_bf16
from docvit.model.config import POSITIONS

REFERENCE, AGAIN = "spatial+page", "spatial+page, again"


def documents(config: docvit.DocViTConfig, count: int, pages: int) -> list[list[np.ndarray]]:
    """Pages of noise, portrait and landscape, whose lower half is blank."""
    height, width = config.page_size, config.page_size * 3 // 4 // config.patch_size * config.patch_size
    portrait = np.random.default_rng(0).integers(0, 256, (height, width, config.in_chans), dtype=np.uint8).squeeze()
    portrait[height // 2 :] = 255
    return [[portrait if (i + j) % 4 else np.swapaxes(portrait, 0, 1) for j in range(pages)] for i in range(count)]


def seconds(model: nn.Module, batch: docvit.PatchSequence, *, bf16: bool) -> float:
    """One forward and one backward pass."""
    device = batch.patches.device
    model.zero_grad()
    _synchronise(device)
    begun = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        logits = model(batch)
    logits.float().square().mean().backward()
    _synchronise(device)
    return time.perf_counter() - begun


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(models: Mapping[str, nn.Module], batch: docvit.PatchSequence, turns: int, *, bf16: bool) -> np.ndarray:
    """Seconds (turns, models); a first turn warms up and is not counted."""
    names, found, random = list(models), np.zeros((turns + 1, len(models))), np.random.default_rng(0)
    for turn in tqdm(range(turns + 1), disable=None):
        for index in random.permutation(len(names)):
            found[turn, index] = seconds(models[names[index]], batch, bf16=bf16)
    return found[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="docvit_small_patch16")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--pages", type=int, default=6, help="pages per document")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    bf16 = has_fast_bf16(device)
    schemes = {**{name: name for name in POSITIONS}, AGAIN: REFERENCE}
    models = {
        name: docvit.create_model(arguments.model, num_classes=8, positions=scheme).to(device).train()
        for name, scheme in schemes.items()
    }
    first = models[REFERENCE]
    batch = first.pack(documents(first.config, arguments.documents, arguments.pages)).to(device)
    found = measure(models, batch, arguments.turns, bf16=bf16)  # (turns, schemes)
    relative = found[:, [list(models).index(REFERENCE)]] / found
    result = {
        "model": arguments.model,
        "documents": arguments.documents,
        "pages": batch.num_pages,
        "patches": batch.num_patches,
        "turns": arguments.turns,
        "bf16": bf16,
        "schemes": {
            name: {
                "seconds": float(np.median(found[:, i])),
                "throughput": float(np.median(relative[:, i])),
                "throughput_quartiles": np.quantile(relative[:, i], [0.25, 0.75]).tolist(),
            }
            for i, name in enumerate(models)
        },
        "command": f"python examples/benchmarks/positions_speed.py --model {arguments.model}"
        f" --documents {arguments.documents} --pages {arguments.pages} --turns {arguments.turns}",
        "versions": {name: version(name) for name in ("torch", "timm")},
        "machine": {"platform": platform.platform(), "cores": torch.get_num_threads(), "device": str(device)},
    }
    for name, scheme in result["schemes"].items():
        low, high = scheme["throughput_quartiles"]
        print(f"{name:>20}: {scheme['throughput']:.3f}  (half of the turns {low:.3f} to {high:.3f})")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
