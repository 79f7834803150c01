"""Distilling any DocViT into any other on labelled documents: what `kd distill` does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from docvit.data.labels import LabelledDocuments
from docvit.evaluation.compare import Comparison, compare
from docvit.model.docvit import DocViT
from docvit.training.batches import held_out_batches
from docvit.training.distributed import process_group
from docvit.training.ema import EMATeacher
from docvit.training.loop import Record, TrainingError, uses_bf16
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.run_folder import agree_on_recipe, read_manifest, write_recipe
from docvit.training.supervised import check_labels, evaluate_batches
from kd.config import DistillationError, DistillConfig
from kd.distill import SETTINGS, distill
from kd.documents.outputs import document_outputs, teacher_view
from kd.documents.paired import paired_batches, student_batches
from kd.documents.teacher_cache import CachedBatches
from kd.student import plain, reuse_classifier, with_projections
from kd.teacher import Teacher, TeacherCache, fingerprint

SELF = "self"

COMPARISON = "comparison"

TeacherLike = DocViT | str | os.PathLike[str]


@dataclass(frozen=True)
class DocumentDistillation:
    """What `distill_documents` has done.

    Attributes:
        student: the model to keep, in eval mode.
        history: one record per epoch, see `docvit.training.loop.fit`.
        fine_tuning: likewise, of the epochs on labels alone.
        comparison: student and teachers on the held-out documents; None without any, and in further processes.
        left_out: the documents without labels that could not be read, a line each.
    """

    student: DocViT
    history: list[Record]
    fine_tuning: list[Record]
    comparison: Comparison | None
    left_out: tuple[str, ...]


def distill_documents(
    student: Recipe | str,
    teacher: TeacherLike | Sequence[TeacherLike],
    data: LabelledDocuments,
    output: str | os.PathLike[str],
    config: DistillConfig = DistillConfig(),
    *,
    valid: LabelledDocuments | None = None,
    unlabelled: Sequence[str] = (),
    resume: bool = False,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    teacher_cache: str | os.PathLike[str] | None = None,
    workers: int = 2,
) -> DocumentDistillation:
    """Trains a student on labels and on its teachers' outputs for the very same views; writes a model folder.

    Prepares data, teachers and student for `kd.distill.distill`, which is the procedure. `output` gets what
    `docvit.training.supervised.train_documents` writes, distillation.json, and, given `valid`, comparison.md, .json
    and .png. Under `torchrun` the batches are shared among the processes.

    Args:
        student: its recipe, the name of a variant, or a folder of weights to begin from.
        teacher: a DocViT, a folder or hub id of one, or `"self"`: the moving average of the student (mean teacher,
            arXiv 1703.01780). Of several, the softened probabilities are averaged.
        config: weights of the loss; `page_loss` and `label_smoothing` are the recipe's.
        valid: documents to evaluate on after every epoch, and to compare on in the end.
        unlabelled: documents without labels, a batch of them beside every labelled one
            (`docvit.data.unlabelled.find_unlabelled`). Those that cannot be read are left out, and so are those to
            evaluate on and copies of them.
        resume: go on where an interrupted run in `output` stopped, under its own recipe and config.
        cache, workers: as for `train_documents`.
        teacher_cache: folder for the teachers' outputs, from which further students with the same views read them.

    Raises:
        DataError: labelled documents that cannot be read, or none of those without labels.
        ModelError: a teacher, or a student to begin from, that is none.
        DistillationError: teachers of other classes, features that do not fit, or what cannot be combined.
        TrainingError, ValueError: as `train_documents`; and a cache of other teachers or views, or a run to resume that
            had others; says what differs.
    """
    folder = Path(output)
    recipe = agree_on_recipe(folder, student if isinstance(student, Recipe) else recipe_for(student), resume=resume)
    config = replace(config, page_loss=recipe.page_loss, label_smoothing=recipe.label_smoothing)
    config = read_config(folder) if resume else config
    check_labels(data)
    with process_group(device) as process:
        teachers = [model.to(process.device) for model in _load_teachers(teacher, data.classes)]
        _check(config, recipe, teachers, unlabelled=bool(unlabelled), cached=teacher_cache is not None)
        model = build_model(recipe, data.classes)
        if config.simkd:
            reuse_classifier(model, teachers[0])
        learner = with_projections(model, tuple(config.features), teachers[0]) if config.features else model
        learner.to(process.device)
        average = EMATeacher(learner, decay=recipe.ema) if recipe.ema else None
        features = [pair.teacher for pair in getattr(learner, "pairs", ())]
        names = config.teacher_outputs(features)
        files = render_all(
            data.paths + (valid.paths if valid else ()), model.config.rendering, process, cache=cache, workers=workers
        )
        batches, left_out = paired_batches(
            data,
            files,
            model.config,
            [one.config for one in teachers or [model]] if names else [],
            recipe,
            process,
            unlabelled=unlabelled,
            second_draw=config.consistency > 0,
            cache=cache,
            workers=workers,
        )
        facts = {
            "teachers": [fingerprint(one, one.config.as_dict()) for one in teachers] or [SELF],
            "data": batches.describe(),
        }
        known = None
        if teacher_cache is not None:
            drawn = {"budget": recipe.budget, "balanced": recipe.balanced}
            precision = {"bf16": uses_bf16(recipe.train, process.device)}
            opened = TeacherCache(teacher_cache, {**facts, "states": names, **drawn, **precision})
            batches.use_cache(opened)
            known = CachedBatches(opened)
        if process.rank == 0:
            write_recipe(folder, recipe)
        held_out = None if valid is None else held_out_batches(valid, files, model.config, recipe)
        networks = teachers if average is None or teachers else [average]

        def evaluate(network: nn.Module) -> Record:
            assert held_out is not None
            return evaluate_batches(plain(network), held_out, data.classes, process.device)

        def beside(kept: nn.Module) -> Comparison | None:
            if valid is None or process.rank > 0:
                return None
            named = _named(teachers) or {"last weights": plain(learner)}
            comparison = compare({**named, "student": plain(kept)}, valid, device=process.device, workers=workers)
            _write(comparison, folder)
            return comparison

        done = distill(
            learner,
            Teacher(networks, document_outputs, view=teacher_view, known=known),
            batches,
            config,
            outputs=document_outputs,
            labelled=student_batches(data, files, model.config, recipe, process) if config.fine_tune else None,
            ema=average,
            settings=recipe.train,
            evaluate=evaluate if held_out is not None else None,
            compare=beside,
            finish=plain,
            output=folder,
            facts=facts,
            save=lambda network: plain(network).save_pretrained(folder),
            resume=resume,
            device=process.device,
            probe=False,
        )
    kept = cast(DocViT, done.student).requires_grad_(True)  # which those of an average are not
    return DocumentDistillation(kept, done.history, done.fine_tuning, done.comparison, left_out)


def recipe_for(student: str) -> Recipe:
    """The default recipe for the variant of that name, or for the model in that folder."""
    return Recipe(init=student) if Path(student).is_dir() else Recipe(model=student)


def _load_teachers(teacher: TeacherLike | Sequence[TeacherLike], classes: tuple[str, ...]) -> list[DocViT]:
    """The teachers; none where the student is its own."""
    given = [teacher] if isinstance(teacher, DocViT | str | os.PathLike) else list(teacher)
    if SELF in [name for name in given if isinstance(name, str)]:
        if len(given) > 1:
            raise DistillationError(f"{SELF!r} stands for the student's moving average: give no other teacher with it")
        return []
    if not given:
        raise DistillationError("there is no teacher")
    for number, one in enumerate(given, 1):
        model = one if isinstance(one, DocViT) else DocViT.from_pretrained(one)
        name = f"teacher {number}" if isinstance(one, DocViT) else f"the teacher {os.fspath(one)}"
        _check_classes(name, model.config.classes, classes)
        given[number - 1] = model
    return cast(list[DocViT], given)


def _check_classes(name: str, found: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Raises DistillationError where a teacher's classes are not those of the data, name by name and in their order."""
    if found == expected:
        return
    if not found:
        raise DistillationError(f"the classes of {name} have no names: set `classes` in its configuration")
    lacking, besides = ([c for c in a if c not in b] for a, b in ((expected, found), (found, expected)))
    differing = [
        f"{words} {', '.join(names)}" for words, names in (("it lacks", lacking), ("it has also", besides)) if names
    ]
    order = f"it has them in the order {', '.join(found)}, the data in the order {', '.join(expected)}"
    raise DistillationError(f"{name} and the data differ in their classes: {'; '.join(differing) or order}")


def _check(
    config: DistillConfig, recipe: Recipe, teachers: Sequence[DocViT], *, unlabelled: bool, cached: bool
) -> None:
    """Raises DistillationError for what cannot be had together."""
    if not teachers and not recipe.ema:
        raise DistillationError("a student that is its own teacher needs a moving average: give ema a decay above 0")
    if not teachers and cached:
        raise DistillationError("the outputs of a moving average change with every step: they cannot be cached")
    if teachers and config.consistency:
        raise DistillationError(f"consistency is with the student's own moving average: give {SELF!r} as the teacher")
    if len(teachers) != 1 and (config.features or config.simkd):
        raise DistillationError("features and the classifier are taken from one teacher, other than the student itself")
    if unlabelled and not config.needs_teacher:
        raise DistillationError("documents without labels have no loss here: give alpha, features or consistency")


def read_config(folder: str | os.PathLike[str]) -> DistillConfig:
    """The config of the run in `folder`.

    Raises:
        TrainingError: the folder holds no distillation.
    """
    file = Path(folder) / SETTINGS
    values = read_manifest(file)
    try:
        return DistillConfig(**values["config"])
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{file} is damaged: {error}") from error


def _named(teachers: Sequence[DocViT]) -> dict[str, DocViT]:
    if len(teachers) == 1:
        return {"teacher": teachers[0]}
    return {f"teacher {number}": model for number, model in enumerate(teachers, 1)}


def _write(comparison: Comparison, folder: Path) -> None:
    (folder / f"{COMPARISON}.md").write_text(comparison.markdown())
    (folder / f"{COMPARISON}.json").write_text(json.dumps(comparison.as_dict(), indent=2) + "\n")
    comparison.plot(folder / f"{COMPARISON}.png")
