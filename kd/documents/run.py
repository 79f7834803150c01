"""Distilling any DocViT into any other on labelled documents: what `kd distill` does."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from docvit.data.labels import LabelledDocuments
from docvit.evaluation.compare import Comparison, compare
from docvit.hardware import has_fast_bf16
from docvit.model.docvit import DocViT
from docvit.model.pretrained import load_pretrained, save_pretrained
from docvit.training.batches import held_out_batches, labelled_batches
from docvit.training.distributed import Process, process_group
from docvit.training.ema import make_ema
from docvit.training.loop import CHECKPOINT, Record, TrainingError, fit
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.run_folder import agree_on_recipe, differences, write_recipe
from docvit.training.supervised import check_labels, classification_loss, evaluate_batches
from kd.distill import FINE_TUNING, SETTINGS, DistillationError, LaterEpochs
from kd.documents.paired import paired_batches
from kd.documents.teacher_cache import TeacherCache, fingerprint
from kd.features import StudentWithProjections, parse_pair, plain, reuse_classifier
from kd.teaching import DocumentLesson, Guide, Teaching

logger = logging.getLogger(__name__)

SELF = "self"

COMPARISON = "comparison"

Teacher = DocViT | str | os.PathLike[str]


@dataclass(frozen=True)
class DocumentDistillation:
    """What `distill_documents` has done.

    Attributes:
        student: the model to keep, in eval mode.
        history: one record an epoch, see `docvit.train.fit`.
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
    teacher: Teacher | Sequence[Teacher],
    data: LabelledDocuments,
    output: str | os.PathLike[str],
    teaching: Teaching = Teaching(),
    *,
    valid: LabelledDocuments | None = None,
    unlabelled: Sequence[str] = (),
    resume: bool = False,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    teacher_cache: str | os.PathLike[str] | None = None,
    workers: int = 2,
) -> DocumentDistillation:
    """Trains a student on labels and on what teachers say of the very same views; writes a model folder.

    `output` gets what `docvit.recipes.train_documents` writes, distillation.json, and, given `valid`, comparison.md,
    .json and .png. Under `torchrun` the batches are shared among the processes.

    Args:
        student: its recipe, the name of a variant, or a folder of weights to begin from.
        teacher: a DocViT, a folder or hub id of one, or `"self"`: the moving average of the student (mean teacher,
            arXiv 1703.01780). Of several, the softened probabilities are averaged.
        valid: documents to evaluate on after every epoch, and to compare on in the end.
        unlabelled: documents without labels, a batch of them beside every labelled one (`docvit.pretrain` finds them).
            Those that cannot be read are left out, and so are those to evaluate on and copies of them.
        resume: go on where an interrupted run in `output` stopped, under its own recipe and teaching.
        cache, workers: as for `train_documents`.
        teacher_cache: folder to keep what the teachers say; a student that sees the same views again need not ask.

    Raises:
        DataError: labelled documents that cannot be read, or none of those without labels.
        ModelError: a teacher, or a student to begin from, that is none.
        DistillationError: teachers of other classes, features that do not fit, a cache of other teachers or views, or a
            run to resume that had others; says what differs.
        TrainingError, ValueError: as `train_documents`.
    """
    folder = Path(output)
    recipe = agree_on_recipe(folder, student if isinstance(student, Recipe) else recipe_for(student), resume=resume)
    teaching = read_teaching(folder) if resume else teaching
    check_labels(data)
    with process_group(device) as place:
        # 1. The teachers have learnt; from here on they only predict.
        teachers = [model.to(place.device) for model in _load_teachers(teacher, data.classes)]
        _check(teaching, recipe, teachers, unlabelled=bool(unlabelled), cached=teacher_cache is not None)
        pupil = _pupil(build_model(recipe, data.classes), teachers, teaching).to(place.device)
        average = make_ema(pupil, recipe.ema)
        itself = [cast(StudentWithProjections, average.module).student] if average is not None else []
        guide = Guide(teachers or itself, teaching.states(pupil.pairs, pages=bool(recipe.page_loss)))
        # 2. The data is rendered, and all networks are handed the same view of every batch.
        config = pupil.student.config
        rendering: dict[str, Any] = {"cache": cache, "workers": workers}
        files = render_all(data.paths + (valid.paths if valid else ()), config.rendering, place, **rendering)
        batches, left_out = paired_batches(
            data,
            files,
            config,
            [model.config for model in guide.teachers] if guide.states else [],
            recipe,
            place,
            unlabelled=unlabelled,
            second_draw=teaching.consistency > 0,
            **rendering,
        )
        facts = {"teachers": [fingerprint(model) for model in teachers] or [SELF], "data": batches.describe()}
        if teacher_cache is not None:
            guide.cache = _open_cache(teacher_cache, facts, guide, recipe, place)
            batches.use_cache(guide.cache)
        _agree(folder, {"teaching": asdict(teaching), **facts}, place, resume=resume)
        if place.rank == 0:
            write_recipe(folder, recipe)
        held_out = None if valid is None else held_out_batches(valid, files, config, recipe)

        def evaluate(model: nn.Module) -> Record:
            if held_out is None:
                return {}
            return evaluate_batches(_student(model), held_out, data.classes, place.device)

        train = partial(
            fit,
            evaluate=evaluate,
            save=lambda m: save_pretrained(_student(m), folder),
            device=place.device,
        )
        settings = replace(recipe.train, bf16=recipe.train.bf16 and has_fast_bf16(place.device))
        # 3. Hard targets are the labels, soft targets what the teachers say; 4. one loss weighs all of them.
        steps = settings.epochs * len(batches)
        lesson = DocumentLesson(teaching, recipe, guide, steps=steps, own_average=not teachers)
        history = train(
            pupil, batches, lesson, settings, output=folder, ema=average, resume=resume, description="distilling"
        )
        kept = _student(average.module if average is not None else pupil)
        # 5. On request, the labels have the last word.
        fine_tuning: list[Record] = []
        if teaching.fine_tune:
            average, below = make_ema(kept, recipe.ema), folder / FINE_TUNING
            fine_tuning = train(
                kept,
                LaterEpochs(labelled_batches(data, files, config, recipe, place), settings.epochs),
                classification_loss(recipe),
                replace(settings, epochs=teaching.fine_tune, lr=settings.lr / 10, schedule="constant", warmup=0.0),
                output=below,
                ema=average,
                resume=resume and (below / CHECKPOINT).is_file(),
                description="fine-tuning",
            )
            kept = _student(average.module if average is not None else kept)
    # 6. The student beside its teachers.
    comparison = None
    if valid is not None and place.rank == 0:
        named = _named(teachers) or {"last weights": plain(pupil.student)}
        comparison = compare({**named, "student": kept}, valid, device=place.device, workers=workers)
        _write(comparison, folder)
    return DocumentDistillation(kept.eval(), history, fine_tuning, comparison, left_out)


def recipe_for(student: str) -> Recipe:
    """The default recipe for the variant of that name, or for the model in that folder."""
    return Recipe(init=student) if Path(student).is_dir() else Recipe(model=student)


def _load_teachers(teacher: Teacher | Sequence[Teacher], classes: tuple[str, ...]) -> list[DocViT]:
    """The teachers; none where the student is its own."""
    given = [teacher] if isinstance(teacher, DocViT | str | os.PathLike) else list(teacher)
    if SELF in [name for name in given if isinstance(name, str)]:
        if len(given) > 1:
            raise DistillationError(f"{SELF!r} stands for the student's moving average: give no other teacher with it")
        return []
    if not given:
        raise DistillationError("there is no teacher")
    for number, one in enumerate(given, 1):
        model = one if isinstance(one, DocViT) else load_pretrained(one)
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
    told = [f"it lacks {', '.join(lacking)}"] * bool(lacking) + [f"it has also {', '.join(besides)}"] * bool(besides)
    order = f"it has them in the order {', '.join(found)}, the data in the order {', '.join(expected)}"
    raise DistillationError(f"{name} and the data differ in their classes: {'; '.join(told) or order}")


def _check(teaching: Teaching, recipe: Recipe, teachers: Sequence[DocViT], *, unlabelled: bool, cached: bool) -> None:
    """Raises DistillationError for what cannot be had together."""
    if not teachers and not recipe.ema:
        raise DistillationError("a student that is its own teacher needs a moving average: give ema a decay above 0")
    if not teachers and cached:
        raise DistillationError("a moving average says something else at every step: it cannot be cached")
    if teachers and teaching.consistency:
        raise DistillationError(f"consistency is with the student's own moving average: give {SELF!r} as the teacher")
    if len(teachers) != 1 and (teaching.features or teaching.simkd):
        raise DistillationError("features and the classifier are taken from one teacher, other than the student itself")
    if unlabelled and not teaching.without_labels:
        raise DistillationError("documents without labels teach nothing here: give alpha, features or consistency")


def _pupil(student: DocViT, teachers: Sequence[DocViT], teaching: Teaching) -> StudentWithProjections:
    if teaching.simkd:
        reuse_classifier(student, teachers[0])
    if not teaching.features:
        return StudentWithProjections(student)
    pairs = [parse_pair(name, student.config, teachers[0].config) for name in teaching.features]
    return StudentWithProjections(student, pairs, teachers[0])


def _student(model: nn.Module) -> DocViT:
    """What is kept of a pupil, or of a student alone."""
    return plain(model.student) if isinstance(model, StudentWithProjections) else cast(DocViT, model)


def _open_cache(
    folder: str | os.PathLike[str], facts: Mapping[str, Any], guide: Guide, recipe: Recipe, place: Process
) -> TeacherCache:
    drawing = {"budget": recipe.budget, "balanced": recipe.balanced}
    precision = {"bf16": recipe.train.bf16 and has_fast_bf16(place.device)}
    return TeacherCache(folder, {**facts, "states": guide.states, **drawing, **precision})


def read_teaching(folder: str | os.PathLike[str]) -> Teaching:
    """The teaching of the run in `folder`.

    Raises:
        TrainingError: the folder holds no distillation.
    """
    file = Path(folder) / SETTINGS
    if not file.is_file():
        raise TrainingError(f"{folder} holds no {SETTINGS}: there is no distillation to resume")
    try:
        return Teaching(**json.loads(file.read_text())["teaching"])
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{file} is damaged: {error}") from error


def _agree(folder: Path, facts: Mapping[str, Any], place: Process, *, resume: bool) -> None:
    """Writes what a new run is about; one that is resumed must have been about the same."""
    asked, file = json.loads(json.dumps(facts)), folder / SETTINGS
    if resume:
        differing = differences(json.loads(file.read_text()), asked)
        if differing:
            raise DistillationError(f"the run in {folder} had other teachers or data: {'; '.join(differing)}")
    elif place.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked, indent=2) + "\n")


def _named(teachers: Sequence[DocViT]) -> dict[str, DocViT]:
    if len(teachers) == 1:
        return {"teacher": teachers[0]}
    return {f"teacher {number}": model for number, model in enumerate(teachers, 1)}


def _write(comparison: Comparison, folder: Path) -> None:
    (folder / f"{COMPARISON}.md").write_text(comparison.markdown())
    (folder / f"{COMPARISON}.json").write_text(json.dumps(comparison.as_dict(), indent=2) + "\n")
    comparison.plot(folder / f"{COMPARISON}.png")
