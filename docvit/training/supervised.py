"""Training a DocViT on labelled documents, from paths to a model folder: what `docvit train` does."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.data.dataset import DocumentBatch
from docvit.data.labels import DataError, LabelledDocuments, check_copies
from docvit.data.loader import DocumentLoader
from docvit.data.metrics import report
from docvit.hardware import has_fast_bf16
from docvit.model.docvit import DocViT
from docvit.model.pretrained import save_pretrained
from docvit.training.batches import held_out_batches, labelled_batches
from docvit.training.distributed import process_group
from docvit.training.ema import make_ema
from docvit.training.loop import Record, fit
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.run_folder import agree_on_recipe, write_recipe

logger = logging.getLogger(__name__)


def classification_loss(recipe: Recipe) -> Callable[[DocViT, DocumentBatch], Mapping[str, Tensor]]:
    """Cross-entropy of documents, plus that of their pages where the recipe asks for it."""

    def loss(model: DocViT, batch: DocumentBatch) -> Mapping[str, Tensor]:
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
    skip_unreadable: bool = False,
) -> tuple[DocViT, list[Record]]:
    """Trains on `data` and writes a model folder.

    `output` gets config.json + model.safetensors (the moving average, after every epoch), checkpoint.safetensors,
    metrics.csv, curves.png and recipe.json. Under `torchrun` the batches are shared among the processes.

    Args:
        valid: documents to evaluate on after every epoch.
        resume: go on where an interrupted run in `output` stopped, under its own recipe.
        cache: folder for rendered pages (`docvit.cache.default_cache`).
        workers: rendering processes, before training.
        skip_unreadable: leave out documents that cannot be read; the log lists them.

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
        files = render_all(
            paths, model.config.rendering, place, cache=cache, workers=workers, skip_unreadable=skip_unreadable
        )
        if skip_unreadable:
            data, valid = data.only(files), valid.only(files) if valid else None
            check_labels(data)
        check_copies(data, files, valid)
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


@torch.inference_mode()
def evaluate_batches(
    model: nn.Module, batches: DocumentLoader, classes: tuple[str, ...], device: torch.device
) -> Record:
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
