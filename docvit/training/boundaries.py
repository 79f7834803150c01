"""A finished model learns where documents begin: documents are glued to packets, which says where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from docvit.data.dataset import DocumentDataset, view_of
from docvit.data.labels import LabelledDocuments
from docvit.data.packets import make_packet
from docvit.hardware import has_fast_bf16
from docvit.model.boundaries import BoundaryHead
from docvit.model.docvit import DocViT
from docvit.training.batches import Shuffled
from docvit.training.loop import TrainSettings, fit
from docvit.training.recipe import Recipe

BATCH = 16  # packets
SETTINGS = TrainSettings(epochs=10, lr=2e-3, weight_decay=0.1, bf16=False)


class Pages(NamedTuple):
    """The pages of packets as the frozen model sees them.

    Attributes:
        tokens, ties: what `BoundaryHead` reads.
        packet: (N,) the packet of each.
        begins: (N,) whether a document begins there.
    """

    tokens: Tensor
    ties: Tensor
    packet: Tensor
    begins: Tensor

    def to(self, device: torch.device | str) -> Pages:
        return Pages(*(part.to(device) for part in self))


def train_boundaries(
    model: DocViT, data: LabelledDocuments, files: Mapping[str, Path], recipe: Recipe, device: torch.device
) -> None:
    """Trains the model's boundary head on packets glued from `data`; all other weights stay what they are."""
    head, seed = model.boundaries, recipe.train.seed
    if head is None or not recipe.packets:
        return
    view = view_of(model.config, augmentation=recipe.augmentation, training=True)
    dataset = DocumentDataset([files[path] for path in data.paths], data.labels, view, seed=seed)
    groups = np.unique(data.groups or data.paths, return_inverse=True)[1]
    count = max(1, round(recipe.packets * len(data)))
    numbers = tqdm(range(count), desc="packets", unit="packet", leave=False, disable=None)
    packets = [see_packet(model.eval(), dataset, groups, n, device=device) for n in numbers]
    with torch.random.fork_rng(devices=[]):
        batches = Shuffled(len(packets), BATCH, partial(join, packets), seed)
        settings = replace(SETTINGS, seed=seed)
        head.requires_grad_(True)
        fit(head, batches, boundary_loss, settings, device=device, description="where documents begin")
    head.requires_grad_(False).eval()


@torch.inference_mode()
def see_packet(
    model: DocViT, dataset: DocumentDataset, groups: np.ndarray, number: int, *, device: torch.device
) -> Pages:
    """Packet `number`, which depends on it and on the data set's seed alone."""
    head = model.boundaries
    assert head is not None
    random = np.random.default_rng((dataset.seed, number, 3))
    stack, begins = make_packet(dataset, groups, number % len(dataset), random)
    batch = dataset.pack([stack]).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
        tokens = model.forward_features(batch).pages
    ties = head.ties(batch, model.words)
    return Pages(tokens.float().cpu(), ties.cpu(), torch.zeros(len(begins), dtype=torch.long), torch.tensor(begins))


def boundary_loss(head: nn.Module, pages: Pages, progress: float = 0.0) -> dict[str, Tensor]:
    """Binary cross-entropy of the pages that have one before them in their packet."""
    assert isinstance(head, BoundaryHead)
    logits = head(pages.tokens, pages.ties, pages.packet)
    within = pages.packet == pages.packet.roll(1)
    within[0] = False
    losses = F.binary_cross_entropy_with_logits(logits, pages.begins.to(logits), reduction="none")[within]
    return {"loss": losses.sum() / max(1, len(losses))}


def join(packets: Sequence[Pages], chosen: Tensor) -> Pages:
    """Some of the packets as one batch."""
    numbered = [packets[i]._replace(packet=packets[i].packet + n) for n, i in enumerate(chosen.tolist())]
    return Pages(*(torch.cat(parts) for parts in zip(*numbered, strict=True)))
