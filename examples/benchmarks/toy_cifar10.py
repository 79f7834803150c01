"""Drawn images in CIFAR-10's own layout, to try `kd bench` without the real ones.

    python examples/benchmarks/toy_cifar10.py toy && kd bench cifar10 --data toy --output toy-bench --preset smoke

Each class is a shape in a colour of its own on a noisy ground: six files of the official binary layout, smaller.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES, SIDE = 10, 32
FILES = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]


def draw(label: int, random: np.random.Generator) -> np.ndarray:
    """One image (32, 32, 3) of class `label`, 0..9: a polygon of label + 3 corners, filled or not, anywhere."""
    ground = random.integers(0, 80, (SIDE, SIDE, 3), dtype=np.uint8)
    image = Image.fromarray(ground)
    centre, radius = random.uniform(11, 21, 2), random.uniform(6, 11)
    colour = tuple(int(128 + 127 * np.sin(label + phase)) for phase in (0, 2, 4))
    shape = (*centre.tolist(), float(radius))
    ImageDraw.Draw(image).regular_polygon(shape, label + 3, rotation=float(random.uniform(0, 360)), fill=colour)
    return np.asarray(image)


def write(folder: Path, records: int, seed: int = 0) -> None:
    """Six files of `records` images each, as many of every class as of the others."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for name in FILES:
        labels = random.permutation(np.arange(records) % CLASSES).astype(np.uint8)
        planes = [draw(int(label), random).transpose(2, 0, 1).ravel() for label in labels]
        (folder / name).write_bytes(np.column_stack([labels, np.stack(planes)]).astype(np.uint8).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--records", type=int, default=500, help="images per file")
    arguments = parser.parse_args()
    write(arguments.folder / "cifar-10-batches-bin", arguments.records)


if __name__ == "__main__":
    main()
