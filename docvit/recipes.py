"""Training a DocViT on labelled documents, from paths to a model folder: what `docvit train` does."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.augment import Augmentation
from docvit.data import (
    Batch,
    Batches,
    DataError,
    DocumentDataset,
    LabelledDocuments,
    View,
    balance,
)
from docvit.hardware import has_fast_bf16
from docvit.metrics import report
from docvit.model import DocViT, DocViTConfig
from docvit.prepare import Place, process_group, render_all, training_batches, view_of
from docvit.train import CHECKPOINT, Record, TrainingError, TrainSettings, fit, make_ema
from docvit.variants import create_model
from docvit.weights import WEIGHTS, adapt, from_timm, load_pretrained, save_pretrained

logger = logging.getLogger(__name__)
RECIPE = "recipe.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training on documents gives; `recipe.json` in the output folder.

    Attributes:
        model: name of a variant; ignored where `init` brings a model.
        init: `timm:NAME` (pretrained weights) or a model folder to start from; None for random weights.
        settings: fields of `DocViTConfig` that differ from the variant's.
        max_pages: pages of a document seen in one epoch: the first, and others chosen at random (of 64 that are spread
            evenly over a longer document).
        budget: tokens a batch, about.
        patch_dropout: largest share of patches left out at random; how many is drawn for each document. It saves work,
            and a batch holds more documents; but what the ink stem tells of a page's layout is spoilt by it.
        mix_pages: share of documents whose later pages are taken from another of their class, of another source: what
            pages of one source have in common then says less.
        label_smoothing: of the cross-entropy.
        page_loss: weight of a second cross-entropy, on what each page's token says alone.
        ema: decay of the moving average that is kept as the model; 0 for none.
        balanced: draw classes equally often, and within them sources by the root of their size (`docvit.data.balance`).
        augmentation: changes to the pages.
        train: the loop's settings.
    """

    model: str = "docvit_compact_patch32"
    init: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    max_pages: int = 4
    budget: int = 1500
    patch_dropout: float = 0.0
    mix_pages: float = 0.5
    label_smoothing: float = 0.05
    page_loss: float = 0.5
    ema: float = 0.998
    balanced: bool = True
    augmentation: Augmentation = field(default_factory=Augmentation)
    train: TrainSettings = field(default_factory=TrainSettings)


AnyRecipe = TypeVar("AnyRecipe")


def build_model(recipe: Recipe, classes: tuple[str, ...]) -> DocViT:
    """The model that the recipe starts from, with a head for `classes`."""
    settings = {**recipe.settings, "num_classes": len(classes), "classes": classes}
    torch.manual_seed(recipe.train.seed)
    if recipe.init is None:
        return create_model(recipe.model, **settings)
    if recipe.init.startswith("timm:"):
        return from_timm(recipe.init.removeprefix("timm:"), pretrained=True, **settings)
    return adapt(load_pretrained(recipe.init), **settings)


def classification_loss(recipe: Recipe) -> Callable[[DocViT, Batch], Mapping[str, Tensor]]:
    """Cross-entropy of documents, plus that of their pages where the recipe asks for it."""

    def loss(model: DocViT, batch: Batch) -> Mapping[str, Tensor]:
        features = model.forward_features(batch.sequence)
        logits = model.forward_head(features).float()
        document = F.cross_entropy(logits, batch.labels, label_smoothing=recipe.label_smoothing)
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        if not recipe.page_loss:
            return {"loss": document, "accuracy": accuracy}
        page_labels = batch.labels[features.document_of_page]
        page = F.cross_entropy(
            model.forward_pages(features).float(), page_labels, label_smoothing=recipe.label_smoothing
        )
        total = document + recipe.page_loss * page
        return {"loss": total, "document_loss": document, "page_loss": page, "accuracy": accuracy}

    return loss


def train_documents(
    data: LabelledDocuments,
    output: str | os.PathLike[str],
    recipe: Recipe = Recipe(),
    *,
    valid: LabelledDocuments | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    workers: int = 2,
) -> tuple[DocViT, list[Record]]:
    """Trains on `data` and writes a model folder.

    `output` gets config.json + model.safetensors (the moving average, after every epoch), checkpoint.safetensors,
    metrics.csv, curves.png and recipe.json. Under `torchrun` the batches are shared among the processes.

    Args:
        valid: documents to evaluate on after every epoch.
        resume: go on where an interrupted run in `output` stopped, under its own recipe.
        cache: folder for rendered pages (`docvit.cache.default_cache`).
        workers: rendering processes, before training.

    Returns:
        The trained model, in eval mode, and one record an epoch.

    Raises:
        DataError: documents that cannot be read (all of them at once), or nothing but one class, before training
            begins.
        ModelError: `init` names no model that can be had.
        TrainingError: `output` holds another run, or none to resume.
        ValueError: an unknown variant, setting or device; the message names the choices.
    """
    folder = Path(output)
    recipe = agree_on_recipe(folder, recipe, resume=resume)
    check_labels(data)
    with process_group(device) as place:
        model = build_model(recipe, data.classes)
        paths = data.paths + (valid.paths if valid else ())
        files = render_all(paths, model.config.rendering, place, cache=cache, workers=workers)
        batches = labelled_batches(data, files, model.config, recipe, place)
        held_out = None if valid is None else held_out_batches(valid, files, model.config, recipe)
        if place.rank == 0:
            write_recipe(folder, recipe)
        ema = make_ema(model.to(place.device), recipe.ema)
        settings = replace(recipe.train, bf16=recipe.train.bf16 and has_fast_bf16(place.device))
        history = fit(
            model,
            batches,
            classification_loss(recipe),
            settings,
            output=folder,
            ema=ema,
            evaluate=None if held_out is None else lambda m: evaluate_batches(m, held_out, data.classes, place.device),
            save=lambda m: save_pretrained(cast(DocViT, m), folder),
            resume=resume,
            device=place.device,
        )
    trained = ema.module if ema is not None else model
    return trained.eval(), history


def check_labels(data: LabelledDocuments) -> None:
    """Raises DataError if all documents have one label."""
    if len(set(data.labels)) < 2:
        names = ", ".join(data.classes[label] for label in set(data.labels)) or "none"
        raise DataError("the data", [f"it takes two classes to tell anything apart, and here is {names}"])


def labelled_batches(
    data: LabelledDocuments, files: Mapping[str, Path], config: DocViTConfig, recipe: Recipe, place: Place
) -> Batches:
    """The training batches of a recipe: `data` as a model of `config` sees it, from rendered `files` by path."""
    return training_batches(
        [files[p] for p in data.paths],
        data.labels,
        training_view(config, recipe),
        place,
        budget=recipe.budget,
        seed=recipe.train.seed,
        groups=data.groups,
        weights=balance(data) if recipe.balanced else None,
    )


def held_out_batches(
    data: LabelledDocuments, files: Mapping[str, Path], config: DocViTConfig, recipe: Recipe
) -> Batches:
    """Batches to evaluate on: whole documents, unchanged, in their order."""
    return Batches(
        DocumentDataset([files[p] for p in data.paths], data.labels, view_of(config)), budget=4 * recipe.budget
    )


def training_view(config: DocViTConfig, recipe: Recipe) -> View:
    """What a model of `config` sees of a document while it is trained under `recipe`."""
    return view_of(
        config,
        max_pages=recipe.max_pages,
        augmentation=recipe.augmentation,
        patch_dropout=recipe.patch_dropout,
        mix_pages=recipe.mix_pages,
        training=True,
    )


@torch.inference_mode()
def evaluate_batches(model: nn.Module, batches: Batches, classes: tuple[str, ...], device: torch.device) -> Record:
    """Accuracy, macro-F1, calibration error and loss over all batches."""
    batches.set_epoch(0)
    scores, labels = [], []
    for batch in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            logits = model(batch.sequence.to(device))
        scores.append(logits.float().cpu())
        labels.append(batch.labels)
    all_scores, all_labels = torch.cat(scores), torch.cat(labels)
    figures = report(all_scores.softmax(1).numpy(), all_labels.tolist(), classes)
    return {
        "valid_loss": float(F.cross_entropy(all_scores, all_labels)),
        "valid_accuracy": figures.accuracy,
        "valid_macro_f1": figures.macro_f1,
        "valid_ece": figures.ece,
    }


def read_recipe(folder: str | os.PathLike[str], kind: type[AnyRecipe] = Recipe) -> AnyRecipe:  # type: ignore[assignment]
    """The recipe of the run in `folder`.

    Args:
        kind: what it is to be: `Recipe`, or another dataclass with `augmentation` and `train`.

    Raises:
        TrainingError: the folder holds no run, or one of another kind.
    """
    file = Path(folder) / RECIPE
    if not file.is_file():
        raise TrainingError(f"{folder} holds no {RECIPE}: there is no run to resume; train without --resume first")
    try:
        values = json.loads(file.read_text())
        # runs from before documents could lose their colours, and have pages of others, go on as they began
        before = {"mix_pages": 0.0} if kind is Recipe else {}
        nested = {
            "augmentation": Augmentation(**{"grey": 0.0} | values["augmentation"]),
            "train": TrainSettings(**values["train"]),
        }
        return kind(**{**before, **values, **nested})
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{file} is damaged, or of another kind of run: {error}") from error


def agree_on_recipe(folder: Path, recipe: AnyRecipe, *, resume: bool) -> AnyRecipe:
    """The recipe of a run in `folder`: the given one for a new run, the run's own where it is resumed.

    Raises:
        TrainingError: `folder` holds another run, none to resume, or is no folder.
    """
    if resume:
        return read_recipe(folder, type(recipe))
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder: choose another output")
    if (folder / CHECKPOINT).exists() or (folder / WEIGHTS).exists():
        raise TrainingError(f"{folder} already holds a run: go on with --resume, or choose another output")
    return recipe


def write_recipe(folder: Path, recipe: Any) -> None:
    """Writes `recipe.json`, creating the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(json.dumps(asdict(recipe), indent=2) + "\n")


def split_groups(data: LabelledDocuments, fold: int, folds: int) -> tuple[LabelledDocuments, LabelledDocuments]:
    """(training, held out) with whole groups held out: fold `fold` of `folds`, stratified by class.

    Raises:
        DataError: the data has no groups, or fewer than `folds`.
    """
    if data.groups is None or len(set(data.groups)) < folds:
        raise DataError("the data", [f"{folds} folds need as many groups: name the CSV's column with --group-by"])
    from sklearn.model_selection import StratifiedGroupKFold  # here, since few commands need to wait for it

    splits = list(StratifiedGroupKFold(folds).split(np.zeros(len(data)), data.labels, data.groups))
    train, held_out = splits[fold]
    return data.subset(train.tolist()), data.subset(held_out.tolist())
