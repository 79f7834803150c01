"""`Recipe`: the full configuration of a supervised training, and the model it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from docvit.data.augment import Augmentation
from docvit.model.config import UNCALIBRATED
from docvit.model.docvit import DocViT
from docvit.model.variants import create_model
from docvit.training.loop import TrainSettings

BOUNDARIES = 96  # hidden width of the head that packets train


@dataclass(frozen=True)
class Recipe:
    """The configuration of a supervised training; `recipe.json` in the output folder.

    Attributes:
        model: name of a variant; not used if `init` is given.
        init: `timm:NAME` (pretrained weights) or a model folder to start from; None for random weights.
        settings: fields of `DocViTConfig` that differ from the variant's.
        ocr_pages: of the first so many pages of each document, those without a text layer are read by OCR
            (`docvit[ocr]`) for a model that reads words.
        max_pages: pages of a document per epoch: the first, and others chosen at random (among 64 that are spread
            evenly over a longer document).
        budget: approximate number of tokens per batch.
        patch_dropout: largest share of patches that are dropped at random; the share is drawn for each document. It
            saves work and a batch holds more documents, but it disturbs the page statistics of the ink stem.
        mix_pages: share of documents whose later pages are replaced by those of another document of the class from
            another source, so that the model cannot rely on what pages of one source have in common.
        lose_words: share of documents that lose all their words, so that the model serves scans, too.
        word_dropout: largest share of the words that are dropped one by one; the share is drawn for each document.
        packets: number of packets, as a share of the documents: several documents glued into one, with which the
            finished model learns where documents begin (`docvit.training.boundaries`); 0 for none.
        text_weight: weight of the logits of a text classifier that is added to the finished model
            (`docvit.training.text`); 0 for none.
        label_smoothing: of the cross-entropy.
        page_loss: weight of a second cross-entropy, of each page token's own prediction.
        ema: decay of the moving average of the weights, which is the model that is saved; 0 for no average.
        balanced: sample classes equally often, and within them sources by the root of their size
            (`docvit.data.sampling.balance`).
        augmentation: random changes to the pages.
        calibrated_like: folders of models of other folds, for a model that is trained on all of them: what it takes to
            be known and sure of is the mean of theirs. Without, and without held-out documents, nothing is unsure.
        train: settings of the training loop.
    """

    model: str = "docvit_compact_patch32"
    init: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    ocr_pages: int = 0
    max_pages: int = 4
    budget: int = 1500
    patch_dropout: float = 0.0
    mix_pages: float = 0.5
    lose_words: float = 0.3
    word_dropout: float = 0.5
    packets: float = 0.0
    text_weight: float = 0.5
    label_smoothing: float = 0.05
    page_loss: float = 0.5
    ema: float = 0.998
    balanced: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)
    calibrated_like: list[str] | None = None
    train: TrainSettings = field(default_factory=TrainSettings)


AnyRecipe = TypeVar("AnyRecipe")


def build_model(recipe: Recipe, classes: tuple[str, ...]) -> DocViT:
    """The model that the recipe starts from, with a head for `classes`."""
    settings = {**recipe.settings, "num_classes": len(classes), "classes": classes, **UNCALIBRATED}
    # without packets a head from earlier would no longer fit the rest
    settings["boundaries"] = recipe.settings.get("boundaries", BOUNDARIES) if recipe.packets else 0
    torch.manual_seed(recipe.train.seed)
    if recipe.init is None:
        return create_model(recipe.model, **settings)
    if recipe.init.startswith("timm:"):
        return DocViT.from_timm(recipe.init.removeprefix("timm:"), pretrained=True, **settings)
    model = DocViT.from_pretrained(recipe.init).adapt(**settings)
    if model.turns is not None:
        model.turns.forget()  # it reads tokens that training changes
    return model
