"""Teacher outputs for documents: what a cached batch is called, and how the teacher comes by it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kd.teacher import TeacherCache


class CachedBatches:
    """`kd.teacher.Known` of `PairedBatch`es: their loader has read what the cache holds of them."""

    def __init__(self, cache: TeacherCache) -> None:
        self.cache = cache

    def find(self, batch: Any) -> Mapping[str, Tensor] | None:
        found: Mapping[str, Tensor] | None = batch.teacher_outputs
        return found

    def keep(self, batch: Any, outputs: Mapping[str, Tensor]) -> None:
        self.cache.write(batch.key, outputs)


def batch_key(epoch: int, documents: Sequence[tuple[int, int]]) -> str:
    """Name of a batch: its epoch and, in order, the index of its documents in the data set and their labels.

    With content, seed and view, which are the same for a whole cache, these decide what is seen of them. Documents may
    be in a run with labels and without: their pages are mixed with other ones then.
    """
    digest = hashlib.sha256(json.dumps(documents).encode()).hexdigest()
    return f"{epoch:04d}-{digest[:24]}"
