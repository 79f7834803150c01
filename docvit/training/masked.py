"""Pre-training on documents without labels: hidden patches are to be foreseen from the others (MAE, arXiv 2111.06377).

What `docvit pretrain` does. The encoder is any DocViT and sees the kept patches alone; a light decoder, which is thrown
away afterwards, says what the hidden ones look like.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from docvit.data.augment import Augmentation
from docvit.data.dataset import DocumentBatch, view_of
from docvit.data.labels import DataError
from docvit.data.tables import read_table, resolve
from docvit.documents.finding import find_documents
from docvit.documents.patches import PatchSequence
from docvit.documents.sources import PAGE_SUFFIXES
from docvit.hardware import has_fast_bf16
from docvit.model.config import DocViTConfig
from docvit.model.docvit import Block, DocViT
from docvit.model.positions import SpatialPage
from docvit.model.pretrained import save_pretrained
from docvit.model.stems import InkStem
from docvit.model.tokens import TokenLayout, token_indices
from docvit.training.batches import training_batches
from docvit.training.distributed import process_group
from docvit.training.loop import Record, TrainSettings, fit
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_readable
from docvit.training.run_folder import agree_on_recipe, write_recipe

DECODER_DEPTH = 2

TARGETS = ("pixels", "ink")

LOOP = TrainSettings(epochs=100, weight_decay=0.05)


class Target(nn.Module):
    """What a hidden patch looks like, in figures of unit variance: (T, C * P * P) -> (T, size).

    `pixels`: its pixels, normalised over the patch, as in MAE. `ink`: what the ink stem says of it before it learns
    anything, each figure normalised over the patches given, as MaskFeat (arXiv 2112.09133) foresees histograms of
    oriented gradients; P is a multiple of 16.
    """

    def __init__(self, name: str, config: DocViTConfig) -> None:
        super().__init__()
        if name == "ink":
            replace(config, stem="ink")  # raises where the stem itself would
        self.ink = InkStem(config.in_chans, config.patch_size, 1).requires_grad_(False) if name == "ink" else None
        self.size = self.ink.norm.num_features if self.ink else config.in_chans * config.patch_size**2

    def forward(self, patches: Tensor) -> Tensor:
        return _standardised(patches, 1) if self.ink is None else _standardised(self.ink.describe(patches), 0)


def _standardised(x: Tensor, dim: int) -> Tensor:
    centred = x - x.mean(dim, keepdim=True)
    return centred / (centred.square().mean(dim, keepdim=True) + 1e-6).sqrt()


class Decoder(nn.Module):
    """A few narrow blocks over all tokens of a document: the encoder's where there are any, else the mask token.

    Every patch gets its address, page included, whatever the encoder's own positional scheme is: hidden patches have
    nothing else that tells them apart. Blocks see the document, so that other pages help.
    """

    def __init__(self, config: DocViTConfig, outputs: int) -> None:
        super().__init__()
        heads = config.num_heads
        dim = heads * max(1, config.embed_dim // heads // 2)
        narrow = replace(config, embed_dim=dim, depth=DECODER_DEPTH, scopes="document", drop_rate=0.0)
        self.num_prefix = 1 + config.num_registers
        self.embed = nn.Linear(config.embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.positions = SpatialPage(dim, grid=config.grid, max_pages=config.max_pages, head_dim=dim // heads)
        self.blocks = nn.ModuleList(Block(narrow, scope="document") for _ in range(DECODER_DEPTH))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.predict = nn.Linear(dim, outputs)
        trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        trunc_normal_(self.predict.weight, std=0.02)  # begins by saying next to nothing: a loss of 1, not 2

    def forward(self, kept: Tensor, batch: PatchSequence, masked: Tensor) -> Tensor:
        """The hidden patches foreseen (M, outputs).

        Args:
            kept: the encoder's tokens (T - M + N * K, D), page by page.
            batch: all T patches, of which only the addresses are read.
            masked: (T,) boolean, M of them true; on the CPU.
        """
        layout, places = TokenLayout.of(batch, self.num_prefix, ("document",)), token_indices(batch, self.num_prefix)
        hidden = places[masked]
        visible = torch.ones(len(layout.order), dtype=torch.bool).index_fill(0, hidden, False).nonzero()[:, 0]
        places, hidden, visible = (index.to(kept.device) for index in (places, hidden, visible))
        x = self.embed(kept).to(self.mask_token.dtype)  # of the residual stream, also under autocast
        x = self.mask_token.expand(len(layout.order), -1).index_copy(0, visible, x)
        x = x.index_add(0, places, self.positions.patches(batch).to(x.dtype))
        x = x.index_add(0, layout.class_tokens, self.positions.pages(batch).to(x.dtype))
        for block in self.blocks:
            x = block(x, layout)
        return self.predict(self.norm(x.index_select(0, hidden)))


class MaskedDocViT(nn.Module):
    """A DocViT, the decoder behind it, and what is to be foreseen.

    Args:
        encoder: what is kept in the end.
        target: a name in `TARGETS`.
    """

    def __init__(self, encoder: DocViT, target: str) -> None:
        super().__init__()
        if not encoder.blocks:
            raise ValueError("a model without blocks has nothing to pre-train")
        self.encoder = encoder
        self.target = Target(target, encoder.config)
        self.decoder = Decoder(encoder.config, self.target.size)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        tables = {name for name, _ in self.named_parameters() if name.startswith("decoder.positions.")}
        return tables | {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def forward(self, batch: PatchSequence, masked: Tensor) -> Tensor:
        """Where `masked` (T,) is true, M patches, what they are thought to look like: (M, target.size)."""
        states = self.encoder.forward_intermediates(batch.select(~masked))
        tokens = self.encoder.norm(states[f"blocks.{self.encoder.config.depth - 1}"])
        predictions: Tensor = self.decoder(tokens, batch, masked)
        return predictions


def draw_mask(count: int, share: float) -> Tensor:
    """(count,) boolean, on the CPU: `share` of all, at least one, drawn from torch's generator."""
    return torch.randperm(count) < max(1, round(share * count))


def reconstruction_loss(share: float) -> Callable[[MaskedDocViT, DocumentBatch], Mapping[str, Tensor]]:
    """Mean squared error on the hidden patches, of targets with unit variance: 1 is what knowing nothing gives."""

    def loss(model: MaskedDocViT, batch: DocumentBatch) -> Mapping[str, Tensor]:
        sequence = batch.sequence
        masked = draw_mask(sequence.num_patches, share)
        with torch.no_grad(), torch.autocast(sequence.patches.device.type, enabled=False):
            target = model.target(sequence.patches[masked].float())
        errors = (model(sequence, masked).float() - target).square()
        return {"loss": errors.sum() / max(1, errors.numel())}  # a batch of blank pages has nothing to foresee

    return loss


@dataclass(frozen=True)
class PretrainRecipe:
    """Everything that decides what a pre-training gives; `recipe.json` in the output folder.

    Attributes:
        model, init, settings: the encoder, as in `docvit.recipes.Recipe`.
        mask: share of the patches that are hidden; blank ones are never there. What the ink stem tells of a page's
            layout is that of the others, so that its statistics of pages have to settle anew in training.
        target: what is foreseen of a hidden patch, a name in `TARGETS`; None for `ink` behind an ink stem, else
            `pixels`.
        max_pages: pages of a document seen in one epoch: the first, and others chosen at random (of 64 that are spread
            evenly over a longer document).
        budget: tokens a batch, about, hidden ones included.
        augmentation: changes to the pages.
        train: the loop's settings.
    """

    model: str = Recipe.model
    init: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    mask: float = 0.75
    target: str | None = None
    max_pages: int = 4
    budget: int = 2400
    augmentation: Augmentation = field(default_factory=Augmentation)
    train: TrainSettings = LOOP

    def __post_init__(self) -> None:
        if not 0 < self.mask < 1:
            raise ValueError(f"mask must lie between 0 and 1, not at {self.mask}")
        if self.target is not None and self.target not in TARGETS:
            raise ValueError(f"no target {self.target!r}: choose one of {', '.join(TARGETS)}")


def build_masked(recipe: PretrainRecipe) -> MaskedDocViT:
    """The model that the recipe starts from; its encoder has no head."""
    start = Recipe(model=recipe.model, init=recipe.init, settings=recipe.settings, train=recipe.train)
    encoder = build_model(start, ())
    return MaskedDocViT(encoder, recipe.target or ("ink" if encoder.config.stem == "ink" else "pixels"))


def pretrain_documents(
    paths: Sequence[str],
    output: str | os.PathLike[str],
    recipe: PretrainRecipe = PretrainRecipe(),
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    workers: int = 2,
) -> tuple[DocViT, list[Record]]:
    """Pre-trains on documents without labels and writes a model folder without a head, for `Recipe.init`.

    `output` gets what `docvit.recipes.train_documents` writes, but the encoder as it is and no moving average; the
    checkpoint holds the decoder too. Documents that cannot be read are left out and listed in the log; of several
    copies of a document one is taken.

    Args:
        paths: files, or folders of page images (`find_unlabelled`).
        resume, cache, workers: as in `train_documents`.

    Returns:
        The pre-trained encoder, in eval mode, and one record an epoch.

    Raises:
        DataError: none of the documents can be read.
        ModelError, TrainingError, ValueError: as in `train_documents`.
    """
    folder = Path(output)
    recipe = agree_on_recipe(folder, recipe, resume=resume)
    with process_group(device) as place:
        model = build_masked(recipe)
        config = model.encoder.config
        rendered, _ = render_readable(paths, config.rendering, place, cache=cache, workers=workers)
        view = view_of(config, max_pages=recipe.max_pages, augmentation=recipe.augmentation, training=True)
        files = list(dict.fromkeys(rendered.values()))  # copies share one
        batches = training_batches(files, None, view, place, budget=recipe.budget, seed=recipe.train.seed)
        if place.rank == 0:
            write_recipe(folder, recipe)
        history = fit(
            model,
            batches,
            reconstruction_loss(recipe.mask),
            replace(recipe.train, bf16=recipe.train.bf16 and has_fast_bf16(place.device)),
            output=folder,
            save=lambda m: save_pretrained(cast(MaskedDocViT, m).encoder, folder),
            resume=resume,
            device=place.device,
            description="pre-training",
        )
    return model.encoder.eval(), history


def find_unlabelled(data: str | os.PathLike[str]) -> list[str]:
    """The documents in a folder, at any depth (`docvit.pages.find_documents`), or in the column `path` of a CSV.

    The folder itself and those right below it hold documents, as in training: full of scans, they are many documents of
    one page and not one of many. Paths in a CSV are relative to the CSV.

    Raises:
        DataError: there is no such folder or CSV, or the CSV has no such column.
    """
    path = Path(data)
    if path.is_dir():
        holders = {path, *path.iterdir()}
        return [p for found in find_documents([path]) for p in (_scans(found) if Path(found) in holders else [found])]
    try:
        return [resolve(path.parent, row["path"]) for _, row in read_table(path, ("path",)) if row["path"]]
    except KeyError as error:
        raise DataError(data, error.args) from None
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(data, [f"neither a folder nor a CSV that can be read: {error}"]) from error


def _scans(path: str) -> list[str]:
    """The page images right in the folder `path`; itself where there are none, or where it is a file."""
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else []
    return [str(p) for p in files if p.suffix.lower() in PAGE_SUFFIXES and not p.name.startswith(".")] or [path]
