"""A finished model learns how pages lie: they are turned, and the label is which way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from docvit.data.dataset import DocumentDataset, view_of
from docvit.data.labels import LabelledDocuments
from docvit.hardware import has_fast_bf16
from docvit.model.docvit import DocViT
from docvit.model.turns import TurnHead, log_odds, with_neighbours
from docvit.training.batches import Shuffled
from docvit.training.loop import TrainSettings, fit
from docvit.training.recipe import Recipe

PAGES = 4  # per document
DOCUMENTS = 2000  # at most
EPOCHS, STEPS, BATCH, LR = 15, 600, 256, 2e-3  # at least so many epochs and steps
WRONG = 0.001  # share of upright pages of unseen groups that may be turned
MARGIN = 1.0  # added to the log odds that this share reaches
ENOUGH = 3.0  # largest threshold for a page on its side: some pages of the data do lie there, and would raise it


def train_turns(
    model: DocViT, data: LabelledDocuments, files: Mapping[str, Path], recipe: Recipe, device: torch.device
) -> None:
    """Trains the model's turn head on its tokens of `data`'s pages, turned; all other weights stay what they are.

    Half of the documents are seen without words. The thresholds are chosen on pages of groups left out (two folds), as
    they are and without words, so that hardly any upright page is turned.
    """
    head = model.turns
    if head is None:
        return
    seed = recipe.train.seed
    chosen = sorted(np.random.default_rng(seed).permutation(len(data))[:DOCUMENTS].tolist())
    pages = [files[data.paths[i]] for i in chosen]
    groups = np.unique([(data.groups or data.paths)[i] for i in chosen], return_inverse=True)[1]
    drawn = view_of(model.config, max_pages=PAGES, augmentation=recipe.augmentation, lose_words=0.5, training=True)
    tokens = _look(model, head, DocumentDataset(pages, None, drawn, seed=seed), range(4), device)
    if not len(tokens.turned):  # blank pages alone
        return
    pixels = replace(view_of(model.config, max_pages=PAGES), words=False)
    upright = _look(model, head, DocumentDataset(pages, None, pixels, seed=seed), [0], device)
    folds = torch.from_numpy(groups) % 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.turns = _train(head, tokens, seed, device).requires_grad_(False)
        if len(folds.unique()) == 2:
            unseen = []
            for left_out in (folds == 0, folds == 1):
                trained = _train(head, tokens.of(~left_out), seed, device)
                unseen.append(_odds(trained.cpu(), upright.of(left_out)))
            side, down = (
                torch.cat(odds).quantile(1 - WRONG).clamp(min=0) + MARGIN for odds in zip(*unseen, strict=True)
            )
            model.turns.side.copy_(side.clamp(max=ENOUGH))
            model.turns.down.copy_(down)


@torch.inference_mode()
def _look(
    model: DocViT, head: TurnHead, dataset: DocumentDataset, quarters: Sequence[int], device: torch.device
) -> _Tokens:
    """What `head` reads of the pages of each document, turned by each of `quarters`."""
    model.eval()
    found = []
    for n in tqdm(range(len(dataset)), desc="turned pages", unit="doc", leave=False, disable=None):
        _, _, stack = dataset[(0, n)]
        batch = dataset.pack([stack.turn([k] * len(stack.pages)) for k in quarters]).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            features = model.forward_features(batch)
        written = batch.page_bounds.diff() > 0
        pages = head.see(features.pages, batch)[written].cpu()
        turned = torch.tensor(quarters)[features.document_of_page[written].cpu()]
        found.append(_Tokens(pages, turned, torch.full((len(pages),), n)))
    return _Tokens(*(torch.cat(part) for part in zip(*found, strict=True)))


@torch.inference_mode()
def _odds(head: TurnHead, upright: _Tokens) -> tuple[Tensor, Tensor]:
    """Log odds that upright pages lie on their side, and upside down."""
    return log_odds(with_neighbours(head(upright.pages), upright.document))


class _Tokens(NamedTuple):
    """What `TurnHead` reads of pages (N, D), how their pages lie (N,), and their documents (N,)."""

    pages: Tensor
    turned: Tensor
    document: Tensor

    def to(self, device: torch.device | str) -> _Tokens:
        return _Tokens(*(part.to(device) for part in self))

    def of(self, documents: Tensor) -> _Tokens:
        """Those of documents for which `documents` is true."""
        return self.at(documents[self.document])

    def at(self, chosen: Tensor) -> _Tokens:
        return _Tokens(*(part[chosen] for part in self))


def _train(untrained: TurnHead, tokens: _Tokens, seed: int, device: torch.device) -> TurnHead:
    fresh = TurnHead(untrained.config)

    def loss(head: nn.Module, batch: _Tokens, progress: float) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(head(batch.pages), batch.turned, label_smoothing=0.02)}

    batches = Shuffled(len(tokens.turned), BATCH, tokens.at, seed)
    settings = TrainSettings(epochs=max(EPOCHS, STEPS // len(batches)), lr=LR, weight_decay=0.3, bf16=False, seed=seed)
    fit(fresh, batches, loss, settings, device=device, description="how pages lie")
    return fresh.eval()
