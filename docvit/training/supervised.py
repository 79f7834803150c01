"""Supervised training on labelled documents, from paths to a model folder: `docvit train`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from docvit.data.dataset import DocumentBatch
from docvit.data.labels import DataError, LabelledDocuments, check_copies
from docvit.data.loader import DocumentLoader
from docvit.data.metrics import report
from docvit.documents.ocr import pages_for
from docvit.hardware import has_fast_bf16
from docvit.model.docvit import DocViT
from docvit.model.folder import write_folder
from docvit.training.batches import held_out_batches, labelled_batches
from docvit.training.boundaries import train_boundaries
from docvit.training.calibrate import calibrate, calibrate_like
from docvit.training.distributed import Process, process_group
from docvit.training.ema import EMATeacher
from docvit.training.history import write_metrics
from docvit.training.loop import Record, fit
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.run_folder import agree_on_recipe, write_recipe
from docvit.training.text import add_text_classifier, count_words
from docvit.training.turns import train_turns

logger = logging.getLogger(__name__)


def classification_loss(recipe: Recipe) -> Callable[[DocViT, DocumentBatch, float], Mapping[str, Tensor]]:
    """Cross-entropy of the documents, plus `page_loss` times that of the page tokens against the document's label."""
    cross_entropy = partial(F.cross_entropy, label_smoothing=recipe.label_smoothing)

    def loss(model: DocViT, batch: DocumentBatch, progress: float) -> Mapping[str, Tensor]:
        features = model.forward_features(batch.sequence)
        logits = model.forward_head(features).float()
        document = cross_entropy(logits, batch.labels)
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        if not recipe.page_loss:
            return {"loss": document, "accuracy": accuracy}
        page = cross_entropy(model.forward_pages(features).float(), batch.labels[features.document_of_page])
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
    epochs: int | None = None,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    workers: int = 2,
    password: str | None = None,
    skip_unreadable: bool = False,
) -> tuple[DocViT, list[Record]]:
    """Trains on `data` and writes a model folder.

    `output` gets config.json and model.safetensors (the moving average, after every epoch), checkpoint.safetensors,
    metrics.csv, curves.png and recipe.json. Under `torchrun` the batches are shared among the processes.

    Args:
        valid: documents to evaluate on after every epoch.
        resume: continue the interrupted run in `output`, under its own recipe.
        epochs: of a run that is resumed to go on for longer than it was begun for, under the schedule of a run that
            long.
        cache: folder for rendered pages; None for `docvit.documents.cache.default_cache`.
        workers: rendering processes, before training.
        password: opens PDFs that have one.
        skip_unreadable: leave out documents that cannot be read; the log lists them.

    Returns:
        The trained model, in eval mode, and one record per epoch; the last one is of the finished model.

    Raises:
        DataError: documents that cannot be read (it names all of them), or documents of one class only.
        ModelError: `init` names no model that can be loaded.
        TrainingError: `output` holds another run, or none to resume.
        ValueError: an unknown variant, setting or device; the message names the choices.
        ModuleNotFoundError: OCR is asked for and `docvit[ocr]` is not installed.
    """
    folder = Path(output)
    recipe = agree_on_recipe(folder, recipe, resume=resume, epochs=epochs)
    check_labels(data)
    others = [DocViT.from_pretrained(other) for other in recipe.calibrated_like or ()]
    with process_group(device) as process:
        model = build_model(recipe, data.classes)
        if others:
            calibrate_like(model, others)  # an error here must come before training
        paths = data.paths + (valid.paths if valid else ())
        rendering: dict[str, Any] = {"cache": cache, "workers": workers, "skip_unreadable": skip_unreadable}
        rendering |= {"password": password, "ocr_pages": pages_for(model.words is not None, recipe.ocr_pages)}
        files = render_all(paths, model.config.rendering, process, **rendering)
        if skip_unreadable:
            data, valid = data.only(files), valid.only(files) if valid else None
            check_labels(data)
        check_copies(data, files, valid)
        count_words(model, [files[path] for path in data.paths])
        batches = labelled_batches(data, files, model.config, recipe, process)
        evaluate = held_out = None
        if valid is not None:
            held_out = held_out_batches(valid, files, model.config, recipe)
            evaluate = partial(evaluate_batches, batches=held_out, classes=data.classes, device=process.device)
        if process.rank == 0:
            write_recipe(folder, recipe)
        ema = EMATeacher(model.to(process.device), decay=recipe.ema) if recipe.ema else None
        history = fit(
            model,
            batches,
            classification_loss(recipe),
            recipe.train,
            output=folder,
            ema=ema,
            evaluate=evaluate,
            save=lambda m: save_unfinished(cast(DocViT, m), folder),
            resume=resume,
            device=process.device,
        )
        if ema is not None:
            ema.copy_to(model)
        trained, model = model, finish(model, data, files, recipe, process, held_out=None if others else held_out)
        if evaluate is not None and model is not trained:
            history[-1].update({name: float(value) for name, value in evaluate(model.eval()).items()})
        if process.rank == 0:
            write_metrics(history, folder)
            model.save_pretrained(folder)
    return model.eval(), history


def check_labels(data: LabelledDocuments) -> None:
    """Raises DataError unless the documents are of at least two classes."""
    if len(set(data.labels)) < 2:
        names = ", ".join(data.classes[label] for label in set(data.labels)) or "none"
        raise DataError("the data", [f"training needs at least two classes, found: {names}"])


def evaluate_batches(
    model: nn.Module, batches: DocumentLoader, classes: tuple[str, ...], device: torch.device
) -> Record:
    """Accuracy, macro-F1, calibration error and loss over all batches."""
    all_scores, all_labels = logits_of(model, batches, device)
    metrics = report(all_scores.softmax(1).numpy(), all_labels.tolist(), classes)
    return {
        "valid_loss": float(F.cross_entropy(all_scores, all_labels)),
        "valid_accuracy": metrics.accuracy,
        "valid_macro_f1": metrics.macro_f1,
        "valid_ece": metrics.ece,
    }


@torch.inference_mode()
def logits_of(
    model: nn.Module, batches: DocumentLoader, device: torch.device, *, words: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and labels (B,) of all documents; without `words`, by pixels alone."""
    batches.set_epoch(0)
    scores, labels = [], []
    for batch in batches:
        sequence = batch.sequence if words else batch.sequence.without_words()
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            logits = model(sequence.to(device))
        scores.append(logits.float().cpu())
        labels.append(batch.labels)
    return torch.cat(scores), torch.cat(labels)


def save_unfinished(model: DocViT, folder: str | os.PathLike[str]) -> None:
    """Saves a model before `finish`: without the head for boundaries, whose weights are random until then."""
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("boundaries.")}
    write_folder(folder, replace(model.config, boundaries=0), state)


def finish(
    model: DocViT,
    data: LabelledDocuments,
    files: Mapping[str, Path],
    recipe: Recipe,
    process: Process,
    *,
    held_out: DocumentLoader | None,
) -> DocViT:
    """What a trained model learns last: how pages lie, where documents begin, its text classifier, what it knows."""
    try:
        train_turns(model, data, files, recipe, process.device)
        train_boundaries(model, data, files, recipe, process.device)
        model = add_text_classifier(model, data, files, weight=recipe.text_weight)
        if held_out is not None:
            calibrate(model.eval(), *logits_of(model, held_out, process.device))
            if model.words is not None:
                calibrate(model, *logits_of(model, held_out, process.device, words=False), pixels=True)
    except KeyboardInterrupt:
        logger.warning("stopped before the model was finished: --resume goes on from here")
        raise
    return model
