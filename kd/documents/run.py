"""Distilling any DocViT into any other on labelled documents: what `kd distill` does."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from docvit.data.dataset import UNLABELLED
from docvit.data.labels import LabelledDocuments
from docvit.documents.ocr import pages_for
from docvit.documents.rendering import Rendering
from docvit.evaluation.compare import Comparison, compare
from docvit.model.docvit import DocViT
from docvit.training.batches import held_out_batches
from docvit.training.distributed import Process, process_group
from docvit.training.ema import EMATeacher
from docvit.training.loop import Record, TrainingError, uses_bf16
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all, render_readable
from docvit.training.run_folder import agree_on_recipe, read_manifest, write_recipe
from docvit.training.supervised import check_labels, evaluate_batches, finish, save_unfinished
from docvit.training.text import count_words
from kd.config import DistillationError, DistillConfig
from kd.distill import SETTINGS, distill
from kd.documents.onnx_network import OnnxNetwork, is_onnx
from kd.documents.outputs import DocumentTeacher, document_outputs
from kd.documents.paired import paired_batches
from kd.documents.probabilities import TeacherProbabilities, read_probabilities
from kd.student import plain, reuse_classifier, with_projections
from kd.teacher import TeacherCache, fingerprint

SELF = "self"

File = str | os.PathLike[str]

TeacherLike = DocViT | File


@dataclass(frozen=True)
class DocumentDistillation:
    """What `distill_documents` has done.

    Attributes:
        student, history, fine_tuning: see `kd.distill.Distillation`.
        comparison: student and teachers on the held-out documents; None without any, and in further processes.
        left_out: the documents without labels that could not be read, a line each.
    """

    student: DocViT
    history: list[Record]
    fine_tuning: list[Record]
    comparison: Comparison | None
    left_out: tuple[str, ...]


class _Teachers(NamedTuple):
    """All that a student learns from; where there is none of them, it is its own moving average."""

    models: list[DocViT]
    tables: list[TeacherProbabilities]
    networks: list[OnnxNetwork]


def distill_documents(
    student: Recipe | str,
    teacher: TeacherLike | Sequence[TeacherLike],
    data: LabelledDocuments | Sequence[str],
    output: str | os.PathLike[str],
    config: DistillConfig = DistillConfig(),
    *,
    valid: LabelledDocuments | None = None,
    unlabelled: Sequence[str] = (),
    teacher_probabilities: File | Sequence[File] = (),
    resume: bool = False,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    teacher_cache: str | os.PathLike[str] | None = None,
    workers: int = 2,
    password: str | None = None,
) -> DocumentDistillation:
    """Trains a student on labels and on its teachers' outputs for the very same views; writes a model folder.

    Prepares data, teachers and student for `kd.distill.distill`, which is the procedure. `output` gets what
    `docvit.training.supervised.train_documents` writes, distillation.json, and, given `valid`, comparison.md, .json
    and .png. Under `torchrun` the batches are shared among the processes.

    Student and teachers may read words or not. Words that the recipe drops are dropped for all alike; nothing is
    dropped where the student reads none.

    Args:
        student: its recipe, the name of a variant, or a folder of weights to begin from.
        teacher: a DocViT, a folder or hub id of one, or `"self"`: the moving average of the student (mean teacher,
            arXiv 1703.01780). Of several, the softened probabilities are averaged. `()` for none beside
            `teacher_probabilities`. `"FILE.onnx:OUTPUT"` is a network of which the student's patch and page tokens
            learn to predict the map at their address (`kd.documents.onnx_network`), weighed by `config.map_loss`;
            there may be several. Where all are such networks there are no soft targets.
        data: labelled documents; or paths alone, from which a student without classes learns the maps of networks
            (`docvit.data.unlabelled.find_unlabelled`). Go on from it with `Recipe.init`.
        config: weights of the loss; `page_loss` and `label_smoothing` are the recipe's.
        valid: documents to evaluate on after every epoch, and to compare on in the end.
        unlabelled: documents without labels, a batch of them beside every labelled one
            (`docvit.data.unlabelled.find_unlabelled`). Those that cannot be read are left out, and so are those to
            evaluate on and copies of them.
        teacher_probabilities: CSVs, each one more member of the ensemble (`kd.documents.probabilities`): what another
            classifier has predicted for the training documents, also for those without labels. Where pages are mixed,
            they are those of the document as it is; documents without labels keep their own pages then.
        resume: go on where an interrupted run in `output` stopped, under its own recipe and config.
        cache, workers, password: as for `train_documents`.
        teacher_cache: folder for the teachers' outputs, from which further students with the same views read them.

    Raises:
        DataError: labelled documents that cannot be read, none of those without labels, or probabilities that cannot be
            used.
        ModelError: a teacher, or a student to begin from, that is none.
        DistillationError: teachers of other classes, features that do not fit, or what cannot be combined.
        TrainingError, ValueError, ModuleNotFoundError: as `train_documents`; and a cache of other teachers or views,
            or a run to resume that had others; says what differs.
    """
    folder = Path(output)
    recipe = agree_on_recipe(folder, student if isinstance(student, Recipe) else recipe_for(student), resume=resume)
    config = replace(config, page_loss=recipe.page_loss, label_smoothing=recipe.label_smoothing)
    config = read_config(folder) if resume else config
    if isinstance(data, LabelledDocuments):
        check_labels(data)
    else:
        data = LabelledDocuments(tuple(data), (UNLABELLED,) * len(data), ())
    with process_group(device) as process:
        given = _open_teachers(teacher, teacher_probabilities, data, process.device)
        teachers, tables, networks = given
        own = not any(given)
        if networks and not teachers and not tables:
            config = replace(config, alpha=0.0, page_alpha=None)
        _check(config, recipe, given, data, valid, unlabelled=bool(unlabelled), cached=teacher_cache is not None)
        if not data.classes:
            config = replace(config, labels=False, page_loss=0.0)
        model = build_model(recipe, data.classes)
        if config.simkd:
            reuse_classifier(model, teachers[0])
        channels = {network.name: network.channels for network in networks}
        learner = with_projections(model, tuple(config.features), next(iter(teachers), None), maps=channels)
        learner.to(process.device)
        features = [pair.teacher for pair in getattr(learner, "pairs", ()) if not pair.of_map]
        names = config.teacher_outputs(features)
        reading: dict[str, Any] = {"workers": workers, "password": password}
        reads_words = model.words is not None or any(one.words is not None for one in teachers)
        reading["ocr_pages"] = pages_for(reads_words, recipe.ocr_pages)
        where = {"cache": cache, **reading}
        data, files, unread = _render(data, valid, model.config.rendering, process, **where)
        batches, left_out = paired_batches(
            data,
            files,
            model.config,
            [one.config for one in ([model] if own else teachers)] if names else [],
            recipe,
            process,
            unlabelled=unlabelled,
            second_draw=config.consistency > 0,
            tables=tables if names else [],
            networks=networks,
            **where,
        )
        count_words(model, batches.files())
        average = EMATeacher(learner, decay=recipe.ema) if recipe.ema else None
        facts = {
            "teachers": [fingerprint(one, one.config.as_dict()) for one in teachers] or ([SELF] if own else []),
            "data": batches.describe(),
        }
        opened = None
        if teacher_cache is not None:
            drawn = {"budget": recipe.budget, "balanced": recipe.balanced}
            precision = {"bf16": uses_bf16(recipe.train, process.device)}
            opened = TeacherCache(teacher_cache, {**facts, "states": names, **drawn, **precision})
            batches.use_cache(opened)
        if process.rank == 0:
            write_recipe(folder, recipe)
        held_out = None if valid is None else held_out_batches(valid, files, model.config, recipe)
        labelled = paired_batches(data, files, model.config, [], recipe, process)[0] if config.fine_tune else None
        members: Sequence[nn.Module] = [average] if own and average is not None else teachers

        def evaluate(network: nn.Module) -> Record:
            assert held_out is not None
            return evaluate_batches(plain(network), held_out, data.classes, process.device)

        def beside(kept: nn.Module) -> Comparison | None:
            if valid is None or process.rank > 0:
                return None
            named = {"last weights": plain(learner)} if own else _named(teachers)
            comparison = compare({**named, "student": plain(kept)}, valid, device=process.device, **reading)
            (folder / "comparison.md").write_text(comparison.markdown())
            (folder / "comparison.json").write_text(json.dumps(comparison.as_dict(), indent=2) + "\n")
            comparison.plot(folder / "comparison.png")
            return comparison

        done = distill(
            learner,
            DocumentTeacher(members, cache=opened),
            batches,
            config,
            outputs=document_outputs,
            labelled=labelled,
            ema=average,
            settings=recipe.train,
            evaluate=evaluate if held_out is not None else None,
            compare=beside,
            finish=plain,
            output=folder,
            facts={
                **facts,
                "teacher probabilities": [table.digest for table in tables],
                "teacher maps": {network.name: network.sha256 for network in networks},
            },
            save=lambda network: save_unfinished(plain(network), folder),
            resume=resume,
            device=process.device,
            probe=False,
        )
        kept = cast(DocViT, done.student).requires_grad_(True)  # which those of an average are not
        if data.classes:
            kept = finish(kept, data, files, recipe, process, held_out=held_out)
        if process.rank == 0:
            kept.save_pretrained(folder)
    return DocumentDistillation(kept, done.history, done.fine_tuning, done.comparison, (*unread, *left_out))


def recipe_for(student: str) -> Recipe:
    """The default recipe for the variant of that name, or for the model in that folder."""
    return Recipe(init=student) if Path(student).is_dir() else Recipe(model=student)


def _render(
    data: LabelledDocuments, valid: LabelledDocuments | None, rendering: Rendering, process: Process, **where: Any
) -> tuple[LabelledDocuments, dict[str, Path], list[str]]:
    """The documents to learn from, their rendered files and those of `valid`, and a line for each that is left out.

    Without labels, documents that cannot be read and copies of others are left out; with labels the former are errors.
    """
    if data.classes:
        return data, render_all(data.paths + (valid.paths if valid else ()), rendering, process, **where), []
    files, problems = render_readable(data.paths, rendering, process, **where)
    each_once = {file: path for path, file in reversed(files.items())}
    return data.only(each_once.values()), files, problems


def _open_teachers(
    teacher: TeacherLike | Sequence[TeacherLike],
    probabilities: File | Sequence[File],
    data: LabelledDocuments,
    device: torch.device,
) -> _Teachers:
    tables = [read_probabilities(file, data.classes, data.paths) for file in _listed(probabilities)]
    given = _listed(teacher)
    networks = [OnnxNetwork(one) for one in given if isinstance(one, str) and is_onnx(one)]
    names = [network.name for network in networks]
    if twice := [name for name in names if names.count(name) > 1]:
        raise DistillationError(f"two teachers are called {twice[0]}: give another output, or the file another name")
    others = [one for one in given if not is_onnx(one)]
    if not others and not tables and not networks:
        raise DistillationError("there is no teacher: give a model, or the probabilities of a classifier")
    if SELF not in [one for one in others if isinstance(one, str)]:
        models = [_load_teacher(one, number, data.classes) for number, one in enumerate(others, 1)]
        return _Teachers([model.to(device) for model in models], tables, networks)
    if len(others) > 1 or tables or networks:
        raise DistillationError(f"{SELF!r} stands for the student's moving average: give no other teacher with it")
    return _Teachers([], [], [])


def _listed(given: Any) -> list[Any]:
    return [given] if isinstance(given, DocViT | str | os.PathLike) else list(given)


def _load_teacher(given: TeacherLike, number: int, expected: tuple[str, ...]) -> DocViT:
    """Raises DistillationError where its classes are not the expected ones, name by name and in their order."""
    model = given if isinstance(given, DocViT) else DocViT.from_pretrained(given)
    name = f"teacher {number}" if isinstance(given, DocViT) else f"the teacher {os.fspath(given)}"
    found = model.config.classes
    if found == expected:
        return model
    if not found:
        raise DistillationError(f"the classes of {name} have no names: set `classes` in its configuration")
    lacking, besides = ([c for c in a if c not in b] for a, b in ((expected, found), (found, expected)))
    differing = [
        f"{words} {', '.join(names)}" for words, names in (("it lacks", lacking), ("it has also", besides)) if names
    ]
    order = f"it has them in the order {', '.join(found)}, the data in the order {', '.join(expected)}"
    raise DistillationError(f"{name} and the data differ in their classes: {'; '.join(differing) or order}")


def _check(
    config: DistillConfig,
    recipe: Recipe,
    given: _Teachers,
    data: LabelledDocuments,
    valid: LabelledDocuments | None,
    *,
    unlabelled: bool,
    cached: bool,
) -> None:
    """Raises DistillationError for what cannot be had together."""
    teachers, tables, networks = given
    own = not any(given)
    if own and not recipe.ema:
        raise DistillationError("a student that is its own teacher needs a moving average: give ema a decay above 0")
    if own and cached:
        raise DistillationError("the outputs of a moving average change with every step: they cannot be cached")
    if not teachers and cached:
        raise DistillationError(
            "without a model as teacher nothing is cached: probabilities are at hand, maps always kept"
        )
    if not own and config.consistency:
        raise DistillationError(f"consistency is with the student's own moving average: give {SELF!r} as the teacher")
    if len(teachers) != 1 and (config.features or config.simkd):
        raise DistillationError("features and the classifier are taken from one teacher, other than the student itself")
    if (tables or networks) and config.simkd:
        raise DistillationError("simkd learns the features of one teacher alone: others have no part in it")
    if unlabelled and not config.teacher_outputs(tuple(config.features)) and not networks:
        raise DistillationError("documents without labels have no loss here: give alpha, features or consistency")
    if data.classes:
        return
    if own or teachers or tables:
        raise DistillationError("documents without labels have ONNX networks alone as teachers: FILE.onnx:OUTPUT")
    if valid is not None or unlabelled or config.fine_tune:
        raise DistillationError(
            "a student without classes is neither evaluated nor fine-tuned: give labelled documents"
        )


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
