"""CIFAR-10 in batches: uint8 images that lie on the device become normalised, augmented batches there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

MEAN = (125.307, 122.950, 113.865)  # per channel, in 0..255, over the training images

STD = (62.993, 62.089, 66.705)


@dataclass(frozen=True)
class Augment:
    """What `ImageLoader` does to training images: a shift by up to `crop` pixels over reflected borders, a mirror image
    half of the time, and a square of `cutout` pixels set to the mean colour (0: none; arXiv 1708.04552)."""

    crop: int = 4
    flip: bool = True
    cutout: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.crop < 32 and 0 <= self.cutout <= 32):
            raise ValueError(f"crop must lie in 0..31 and cutout in 0..32, not {self.crop} and {self.cutout}")


@dataclass(frozen=True)
class ImageBatch:
    """Normalised images (B, 3, 32, 32) in channels_last, labels (B,), and the samples' indices in the data (B,)."""

    images: Tensor
    labels: Tensor
    index: Tensor

    def to(self, device: torch.device | str) -> ImageBatch:
        return ImageBatch(self.images.to(device), self.labels.to(device), self.index.to(device))


class ImageLoader:
    """The batches of one epoch, made on the device from uint8 images that stay there.

    The order depends on (seed, epoch, number of images) alone, and the view of a sample on those, its index and
    `augment`: on no device, no batch size, and nothing drawn before, so a run that resumes in the middle of an epoch
    sees the same batches, and `loader[step]` is any of them. `set_epoch` moves on; without it every pass is alike.
    Loaders share the memory of images that already lie on the device in channels_last. They are the batches that
    `docvit.training.loop.fit` takes.

    images (N, 3, 32, 32) uint8, labels (N,). With `drop_last` all batches have one shape. Raises `ValueError` for other
    images or a batch size that leaves no batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        device: torch.device | str = "cpu",
        augment: Augment | None = None,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
    ) -> None:
        if images.dtype != torch.uint8 or images.shape[1:] != (3, 32, 32) or labels.shape != images.shape[:1]:
            shapes = f"{images.dtype} {tuple(images.shape)} and {tuple(labels.shape)}"
            raise ValueError(f"need uint8 images (N, 3, 32, 32) and as many labels, not {shapes}")
        if batch_size < 1 or len(images) < (batch_size if drop_last else 1):
            raise ValueError(f"{len(images)} images do not fill a batch of {batch_size}")
        self.device = torch.device(device)
        self.images = rearrange(images.to(self.device), "n c h w -> n h w c").contiguous()
        self.labels = labels.to(self.device)
        self.batch_size, self.drop_last, self.shuffle = batch_size, drop_last, shuffle
        self.augment, self.seed = augment, seed
        self._mean = torch.tensor(MEAN, device=self.device)
        self._std = torch.tensor(STD, device=self.device)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Draw the order and the views of an epoch, counted from 0; the next pass leaves out `skip` batches of it."""
        self.epoch, self._skip, count = epoch, skip, len(self.images)
        order = torch.randperm(count, generator=self._generator(0)) if self.shuffle else torch.arange(count)
        self._order = self._to_device(order)
        if self.augment is not None:
            self._views = self._to_device(_draw_views(self.augment, count, self._generator(1)))

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __getitem__(self, step: int) -> ImageBatch:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        return self.at(self._order[step * self.batch_size : (step + 1) * self.batch_size])

    def at(self, index: Tensor) -> ImageBatch:
        """The samples at these indices (B,), as they look in this epoch."""
        if self.augment is None:
            images = self._normalise(self.images[index])
        else:
            views = self._views[index]
            images = _cut_out(
                self._normalise(_shift_and_flip(self.images, index, views, self.augment)), views, self.augment
            )
        # the memory is already (B, 32, 32, 3): seen as (B, 3, 32, 32) it is channels_last
        return ImageBatch(rearrange(images, "b h w c -> b c h w"), self.labels[index], index)

    def __iter__(self) -> Iterator[ImageBatch]:
        first, self._skip = self._skip, 0
        return (self[step] for step in range(first, len(self)))

    def _normalise(self, images: Tensor) -> Tensor:
        return (images - self._mean) / self._std

    def _generator(self, stream: int) -> torch.Generator:
        # drawn on the CPU, an epoch at a time: the same on every device, and no state to keep
        (state,) = np.random.SeedSequence([self.seed, self.epoch, stream]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state >> np.uint64(1)))

    def _to_device(self, drawn: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return drawn.pin_memory().to(self.device, non_blocking=True)
        return drawn.to(self.device)


def _draw_views(augment: Augment, count: int, generator: torch.Generator) -> Tensor:
    """(N, 5): shift down, shift right, mirrored, and the row and column where the cutout is centred."""
    ends = (2 * augment.crop + 1, 2 * augment.crop + 1, 2 if augment.flip else 1, 32, 32)
    return torch.stack([torch.randint(end, (count,), generator=generator) for end in ends], dim=1)


def _shift_and_flip(images: Tensor, index: Tensor, views: Tensor, augment: Augment) -> Tensor:
    """Views (B, 5) of the images (N, 32, 32, 3) at `index` (B,), in one gather: (B, 32, 32, 3)."""
    pixels = torch.arange(32, device=images.device)
    down, right, mirrored = rearrange(views[:, :3], "b k -> k b 1")
    rows = _reflect(pixels + down - augment.crop)  # [B, 32]
    columns = _reflect(pixels + right - augment.crop)  # [B, 32]
    columns = torch.where(mirrored == 1, 31 - columns, columns)
    return images[rearrange(index, "b -> b 1 1"), rearrange(rows, "b h -> b h 1"), rearrange(columns, "b w -> b 1 w")]


def _reflect(pixels: Tensor) -> Tensor:
    return 31 - (31 - pixels.abs()).abs()


def _cut_out(images: Tensor, views: Tensor, augment: Augment) -> Tensor:
    if not augment.cutout:
        return images
    pixels = torch.arange(32, device=images.device)
    first = rearrange(views[:, 3:], "b k -> k b 1") - augment.cutout // 2
    rows, columns = (pixels >= first) & (pixels < first + augment.cutout)  # [B, 32] each
    return images.masked_fill(rearrange(rows, "b h -> b h 1 1") & rearrange(columns, "b w -> b 1 w 1"), 0.0)
