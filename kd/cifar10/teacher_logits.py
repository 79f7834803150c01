"""The logits of a teacher on training images that look the same in every epoch, computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kd.cifar10.batches import ImageBatch, ImageLoader
from kd.teacher import Teacher, TeacherCache

LOGITS = "0.logits"


def teacher_logits(
    teacher: Teacher, images: ImageLoader, cache: TeacherCache, *, bf16: bool
) -> Callable[[ImageBatch], dict[str, Tensor]]:
    """`Teacher.known` of `images`, which are not augmented; read from `cache` as far as it has them.

    In batches of the size that the student trains with, the last one filled up with the first images: kernels are
    chosen by the size of a batch, and with the same ones an image's logits are the same bits in whichever batch it is.
    """
    count, size = len(images.images), images.batch_size
    found = torch.empty(0)
    for first in range(0, count, size):
        key = f"{first:06d}"
        outputs = cache.read(key)
        if outputs is None:
            batch = images.at(torch.arange(first, first + size, device=images.device) % count)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
                outputs = dict(teacher(batch, ["logits"]))
            cache.write(key, outputs)
        logits = outputs[LOGITS].to(images.device)
        if not len(found):
            found = logits.new_empty((count, logits.shape[1]))
        found[first : first + size] = logits[: count - first]
    return lambda batch: {LOGITS: found[batch.index]}
