"""A finished model learns how pages lie: they are turned, and the label is which way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from docvit.data.augment import Augmentation
from docvit.data.dataset import DocumentDataset, View, view_of
from docvit.data.labels import LabelledDocuments
from docvit.hardware import has_fast_bf16
from docvit.model.docvit import DocViT
from docvit.model.turns import TurnHead, log_odds, with_neighbours
from docvit.training.batches import Shuffled
from docvit.training.loop import TrainSettings, fit

PAGES = 4  # per document
DOCUMENTS = 2000  # at most
EPOCHS, STEPS, BATCH, LR = 15, 600, 256, 2e-3  # at least so many epochs and steps
WRONG = 0.001  # share of upright pages of unseen groups that may be turned
MARGIN = 1.0  # added to the log odds that this share reaches
ENOUGH = 3.0  # largest threshold for a page on its side: some pages of the data do lie there, and would raise it


def train_turns(
    model: DocViT,
    data: LabelledDocuments,
    files: Mapping[str, Path],
    augmentation: Augmentation,
    *,
    seed: int,
    device: torch.device,
) -> None:
    """Trains the model's turn head on its tokens of `data`'s pages, turned; all other weights stay what they are.

    Half of the documents are seen without words. The thresholds are chosen on groups left out (two folds), so that
    hardly any upright page is turned.
    """
    head = model.turns
    if head is None:
        return
    chosen = sorted(np.random.default_rng(seed).permutation(len(data))[:DOCUMENTS].tolist())
    paths = [data.paths[i] for i in chosen]
    groups = np.unique([(data.groups or data.paths)[i] for i in chosen], return_inverse=True)[1]
    view = view_of(model.config, max_pages=PAGES, augmentation=augmentation, lose_words=0.5, training=True)
    samples = list(_tokens(model, [files[path] for path in paths], view, seed=seed, device=device))
    tokens = _Tokens(*(torch.cat(part) for part in zip(*samples, strict=True)))
    if not len(tokens.turned):  # blank pages alone
        return
    fold = torch.from_numpy(groups)[tokens.document] % 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.turns = _train(tokens, seed, device).requires_grad_(False)
        if len(fold.unique()) == 2:
            unseen = [_unseen(tokens, fold == k, seed, device) for k in (0, 1)]
            side, down = (
                torch.cat(odds).quantile(1 - WRONG).clamp(min=0) + MARGIN for odds in zip(*unseen, strict=True)
            )
            model.turns.side.copy_(side.clamp(max=ENOUGH))
            model.turns.down.copy_(down)


@torch.inference_mode()
def _tokens(model: DocViT, files: list[Path], view: View, *, seed: int, device: torch.device) -> Iterator[_Tokens]:
    """Of each document the tokens of its pages in four turns."""
    dataset = DocumentDataset(files, None, view, seed=seed)
    model.eval()
    for n in tqdm(range(len(files)), desc="turned pages", unit="doc", leave=False, disable=None):
        _, _, stack = dataset[(0, n)]
        stacks = [stack.turn([k] * len(stack.pages)) for k in range(4)]
        batch = dataset.pack(stacks).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            features = model.forward_features(batch)
        written = batch.page_bounds.diff() > 0
        kept = features.pages[written].float().cpu()
        yield _Tokens(kept, features.document_of_page[written].cpu(), torch.full((len(kept),), n))


def _unseen(tokens: _Tokens, held_out: Tensor, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Log odds that upright pages lie on their side, and upside down, by a head trained on the others."""
    head = _train(tokens.at(~held_out), seed, device).cpu()
    upright = tokens.at(held_out & (tokens.turned == 0))
    with torch.inference_mode():
        return log_odds(with_neighbours(head(upright.pages), upright.document))


class _Tokens(NamedTuple):
    """Page tokens (N, D), how their pages lie (N,), and their documents (N,)."""

    pages: Tensor
    turned: Tensor
    document: Tensor

    def to(self, device: torch.device | str) -> _Tokens:
        return _Tokens(*(part.to(device) for part in self))

    def at(self, chosen: Tensor) -> _Tokens:
        return _Tokens(*(part[chosen] for part in self))


def _train(tokens: _Tokens, seed: int, device: torch.device) -> TurnHead:
    head = TurnHead(tokens.pages.shape[1])

    def loss(head: nn.Module, batch: _Tokens, progress: float) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(head(batch.pages), batch.turned, label_smoothing=0.02)}

    batches = Shuffled(len(tokens.turned), BATCH, tokens.at, seed)
    settings = TrainSettings(epochs=max(EPOCHS, STEPS // len(batches)), lr=LR, weight_decay=0.3, bf16=False, seed=seed)
    fit(head, batches, loss, settings, device=device, description="how pages lie")
    return head.eval()
