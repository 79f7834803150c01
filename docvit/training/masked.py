"""Masked pre-training on documents without labels, from paths to a model folder: `docvit pretrain`.

Masked patches are predicted from the visible ones (MAE, arXiv 2111.06377). The encoder, any DocViT, sees the visible
patches alone; the decoder is thrown away afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from docvit.data.augment import Augmentation
from docvit.data.dataset import DocumentDataset, view_of
from docvit.documents.ocr import pages_for
from docvit.errors import SettingError
from docvit.model.docvit import DocViT
from docvit.training.batches import shuffled
from docvit.training.distributed import process_group
from docvit.training.loop import Record, TrainSettings, fit
from docvit.training.masked_model import TARGETS, MaskedDocViT, reconstruction_loss
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_readable
from docvit.training.run_folder import agree_on_recipe, write_recipe
from docvit.training.text import count_words

LOOP = TrainSettings(epochs=100, weight_decay=0.05)


@dataclass(frozen=True)
class PretrainRecipe:
    """The configuration of a masked pre-training; `recipe.json` in the output folder.

    Attributes:
        model, init, settings: the encoder, as in `docvit.training.recipe.Recipe`.
        mask: share of the patches that are masked; blank ones do not count. The page statistics of the ink stem are
            then those of the visible patches and have to adapt in training.
        target: what is predicted for a masked patch, a name in `TARGETS`; None for `ink` if the encoder has an ink
            stem, else `pixels`.
        word_loss: weight of the words printed on masked patches, which a model that reads words predicts, too.
        ocr_pages: as in `Recipe`.
        max_pages: pages of a document per epoch: the first, and others chosen at random (among 64 that are spread
            evenly over a longer document).
        budget: approximate number of tokens per batch, masked ones included.
        augmentation: random changes to the pages.
        train: settings of the training loop.
    """

    model: str = Recipe.model
    init: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    mask: float = 0.75
    target: str | None = None
    word_loss: float = 1.0
    ocr_pages: int = 0
    max_pages: int = 4
    budget: int = 2400
    augmentation: Augmentation = field(default_factory=Augmentation)
    train: TrainSettings = LOOP

    def __post_init__(self) -> None:
        if not 0 < self.mask < 1:
            raise SettingError(f"mask must lie between 0 and 1, not be {self.mask}")
        if self.target is not None and self.target not in TARGETS:
            raise SettingError(f"no target {self.target!r}: choose one of {', '.join(TARGETS)}")
        if self.word_loss < 0:
            raise SettingError(f"word_loss must be at least 0, not {self.word_loss}")


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
    epochs: int | None = None,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    workers: int = 2,
    password: str | None = None,
) -> tuple[DocViT, list[Record]]:
    """Pre-trains on documents without labels and writes a model folder without a head, for `Recipe.init`.

    `output` gets the files that `docvit.training.supervised.train_documents` writes, with the encoder itself and no
    moving average; the checkpoint holds the decoder too. Documents that cannot be read are left out and listed in the
    log; copies of a document count once.

    Args:
        paths: files, or folders of page images (`docvit.data.unlabelled.find_unlabelled`).
        resume, epochs, cache, workers, password: as in `train_documents`.

    Returns:
        The pre-trained encoder, in eval mode, and one record per epoch.

    Raises:
        DataError: none of the documents can be read.
        ModelError, TrainingError, ValueError, ModuleNotFoundError: as in `train_documents`.
    """
    folder = Path(output)
    recipe = agree_on_recipe(folder, recipe, resume=resume, epochs=epochs)
    with process_group(device) as process:
        model = build_masked(recipe)
        config = model.encoder.config
        rendering: dict[str, Any] = {"cache": cache, "workers": workers, "password": password}
        rendering["ocr_pages"] = pages_for(config.words > 0, recipe.ocr_pages)
        rendered, _ = render_readable(paths, config.rendering, process, **rendering)
        count_words(model.encoder, rendered.values())
        view = view_of(config, max_pages=recipe.max_pages, augmentation=recipe.augmentation, training=True)
        files = list(dict.fromkeys(rendered.values()))  # copies share one
        dataset = DocumentDataset(files, None, view, seed=recipe.train.seed)
        batches = shuffled(dataset, process, budget=recipe.budget)
        if process.rank == 0:
            write_recipe(folder, recipe)
        history = fit(
            model,
            batches,
            reconstruction_loss(recipe.mask, recipe.word_loss),
            recipe.train,
            output=folder,
            save=lambda m: cast(MaskedDocViT, m).encoder.save_pretrained(folder),
            resume=resume,
            device=process.device,
            description="pre-training",
        )
    return model.encoder.eval(), history
