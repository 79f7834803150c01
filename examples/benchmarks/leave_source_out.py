"""Accuracy on sources never trained on: every fold leaves whole sources out, one model per fold and seed.

    python examples/benchmarks/leave_source_out.py DOCUMENTS.csv --output runs/linear --model docvit_linear_patch32 \\
        --epochs 32 --label-smoothing 0
    python examples/benchmarks/leave_source_out.py DOCUMENTS.csv --output runs/alone
    python examples/benchmarks/leave_source_out.py DOCUMENTS.csv --output runs/small --teachers runs/linear

DOCUMENTS.csv has the columns path, label and source_repo. Folds are scikit-learn's StratifiedGroupKFold(5). A run that
is finished is not repeated; an output folder holds runs of one kind of settings (settings.json). With `--teachers`,
outputs of this script, the model of a seed and fold also learns from theirs of the same fold, which saw the same
sources: of all their seeds, or with `--same-seed` of its own. The features that the ink stem computes of augmented
pages are not learned: they are computed once, into `--views`, and all runs, whatever their seed, train on them. Writes
results.json: the pooled predictions of all folds scored once per seed (last epoch, never the best), mean and spread
over seeds, and what the seeds averaged give.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from measured import measure_all, train_measured

from docvit.data.labels import LabelledDocuments, read_labelled, split_groups
from docvit.data.metrics import report
from docvit.files import replaced
from docvit.hardware import choose_device
from docvit.inference.classify import DocumentClassifier
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.folder import CONFIG
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.run_folder import differences
from kd.cifar10.results import describe_device
from kd.config import DistillConfig

SETTINGS, PREDICTIONS = "settings.json", "predictions.json"
Task = tuple[int, int]  # seed, fold


def scores(classifier: DocumentClassifier, held_out: LabelledDocuments) -> np.ndarray:
    rows = list(classifier.predict(held_out.paths))
    return np.array([[row.scores[name] for name in held_out.classes] for row in rows])


@dataclass(frozen=True)
class Plan:
    """How every model is trained, except for its seed and fold.

    Attributes:
        views: augmented views per document; further epochs repeat them.
        teachers: outputs of this script.
        same_seed: learn from their model of the same seed alone.
        config: weights of the distillation loss, where there are teachers.
    """

    recipe: Recipe
    folds: int
    views: int
    teachers: tuple[str, ...]
    config: DistillConfig
    same_seed: bool = False


def pages_seen(config: DocViTConfig) -> list[Any]:
    """The settings that models must share to train on the same features."""
    return [asdict(config.rendering), config.patch_size, config.mean, config.std]


def result_of(output: Path, task: Task) -> Path:
    """Where the predictions of the model of this seed and fold are, once it has been trained."""
    seed, fold = task
    return output / f"seed-{seed}" / f"fold-{fold + 1}" / PREDICTIONS


def run_fold(
    data: LabelledDocuments, plan: Plan, task: Task, teachers: list[Path], output: Path, views: Path, device: str
) -> dict[str, list]:
    result = result_of(output, task)
    if not result.exists():
        seed, fold = task
        training, held_out = split_groups(data, fold, plan.folds)
        recipe = replace(plan.recipe, train=replace(plan.recipe.train, seed=seed))
        measured = torch.load(views, mmap=True)["views"]
        models = [DocViT.from_pretrained(str(teacher)) for teacher in teachers]
        model, _ = train_measured(data, training, measured, recipe, models, plan.config, device=torch.device(device))
        result.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(result.parent)
        predicted = scores(DocumentClassifier(model, device=device), held_out)
        found = {"scores": predicted.tolist(), "labels": list(held_out.labels), "teachers": len(teachers)}
        result.write_text(json.dumps(found))
    return json.loads(result.read_text())


def see(data: LabelledDocuments, recipe: Recipe, config: DocViTConfig, epochs: int, file: Path, jobs: int) -> None:
    """Writes the features of all views into `file`, unless it exists; ends the program where it is of others."""
    if config.stem != "ink":
        raise SystemExit(f"only the ink stem's features can be kept, and this model has the {config.stem} stem")
    if config.words:
        raise SystemExit("the features of pages are kept without their words: set words=0")
    names = [Path(path).name for path in data.paths]
    about = [names, *pages_seen(config), recipe.max_pages, asdict(recipe.augmentation)]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as partial:
            torch.save({"of": digest, "epochs": epochs, "views": measure_all(data, recipe, epochs, jobs)}, partial)
        return
    found = torch.load(file, mmap=True)
    if found["of"] != digest or found["epochs"] < epochs:
        others = "other documents or settings, too few, or as an earlier version wrote them"
        raise SystemExit(f"{file} holds views of {others}: delete it, or name another with --views")


def data_of(data: LabelledDocuments) -> dict[str, Any]:
    about = [[Path(path).name for path in data.paths], data.labels, data.classes, data.groups]
    return {"documents": len(data), "sha256": hashlib.sha256(json.dumps(about).encode()).hexdigest()}


def settings_of(data: LabelledDocuments, plan: Plan) -> dict[str, Any]:
    """All that the runs depend on, except for their seeds."""
    distillation = {"teachers": plan.teachers, "config": plan.config.as_dict()} if plan.teachers else {}
    if plan.same_seed:
        distillation["same_seed"] = True
    return {
        "folds": plan.folds,
        "data": data_of(data),
        "views": plan.views,
        "recipe": asdict(plan.recipe),
        **distillation,
    }


def agree_on_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Notes the settings of the runs in `folder`; ends the program where those there had others."""
    asked, file = json.loads(json.dumps(settings)), folder / SETTINGS
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked, indent=1) + "\n")
    elif differing := differences(json.loads(file.read_text()), asked):
        raise SystemExit(f"{folder} holds results of other settings: {'; '.join(differing)}")


def find_teachers(
    plan: Plan, tasks: Sequence[Task], settings: dict[str, Any], config: DocViTConfig
) -> dict[Task, list[Path]]:
    """The folders of the models that those of `tasks` learn from.

    Ends the program where they are of other folds or documents, see other pages, or are not all there.
    """
    found: dict[Task, list[Path]] = {task: [] for task in tasks}
    for runs in map(Path, plan.teachers if tasks else ()):
        if not (runs / SETTINGS).exists():
            raise SystemExit(f"{runs} is no output of this script")
        if differing := other_data(settings, json.loads((runs / SETTINGS).read_text())):
            raise SystemExit(f"{runs} cannot be the teachers: {'; '.join(differing)}")
        for seed, fold in tasks:
            files = runs.glob(f"seed-{seed if plan.same_seed else '*'}/fold-{fold + 1}/{PREDICTIONS}")
            folders = [file.parent for file in sorted(files)]
            if not folders:
                of_seed = f"seed {seed} and " if plan.same_seed else ""
                raise SystemExit(f"{runs} has no finished model of {of_seed}fold {fold + 1}")
            found[seed, fold] += folders
    for folder in {folder for folders in found.values() for folder in folders}:
        seen = pages_seen(DocViTConfig.from_dict(json.loads((folder / CONFIG).read_text())))
        if seen != pages_seen(config):
            raise SystemExit(f"{folder} sees pages of another size, patches, colours or normalisation")
    return found


def other_data(asked: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """How the folds and documents of two settings differ."""
    about = [json.loads(json.dumps({name: these[name] for name in ("folds", "data")})) for these in (found, asked)]
    return differences(*about)


def accuracy(fold: dict[str, list]) -> float:
    return float((np.argmax(fold["scores"], 1) == np.array(fold["labels"])).mean())


def spread(values: list[float]) -> dict[str, float | None]:
    return {"mean": statistics.mean(values), "std": statistics.stdev(values) if len(values) > 1 else None}


def draw_confusion(runs: list[dict], classes: tuple[str, ...], file: Path) -> None:
    """Documents of each class (rows) by predicted class (columns), summed over seeds."""
    counts = np.sum([run["confusion"] for run in runs], axis=0)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [name.replace("_", " ") for name in classes]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for (row, col), count in np.ndenumerate(counts):
        if count:
            color = "white" if shares[row, col] > 0.5 else "black"
            axes.text(col, row, str(count), ha="center", va="center", color=color, fontsize=9)
    figure.savefig(file, dpi=130)


def _value(text: str) -> Any:
    """A number where it looks like one, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--views", type=Path, default=Path("runs/views.pt"), help="file of the stem's features")
    parser.add_argument("--group-by", default="source_repo")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=TrainSettings.epochs)
    parser.add_argument("--lr", type=float, default=TrainSettings.lr)
    parser.add_argument("--label-smoothing", type=float, default=Recipe.label_smoothing)
    parser.add_argument("--mix-pages", type=float, default=Recipe.mix_pages)
    parser.add_argument("--model", default=Recipe.model, help="name of a variant")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="setting of DocViTConfig")
    parser.add_argument(
        "--teachers", nargs="+", default=[], metavar="RUNS", help="outputs of this script whose models are the teachers"
    )
    parser.add_argument("--same-seed", action="store_true", help="only their model of the same seed is a teacher")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--jobs", type=int, default=1, help="folds trained side by side, each on one core; the features too"
    )
    arguments = parser.parse_args()
    if arguments.same_seed and not arguments.teachers:
        parser.error("--same-seed chooses among --teachers: give those too")
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    changes = {name: _value(text) for name, _, text in (change.partition("=") for change in arguments.set)}
    recipe = Recipe(
        arguments.model,
        settings=changes,
        mix_pages=arguments.mix_pages,
        label_smoothing=arguments.label_smoothing,
        train=TrainSettings(epochs=arguments.epochs, lr=arguments.lr, bf16=False),
    )
    distil = DistillConfig(alpha=arguments.alpha, temperature=arguments.temperature)
    views = min(arguments.epochs, TrainSettings.epochs)
    plan = Plan(recipe, arguments.folds, views, tuple(arguments.teachers), distil, arguments.same_seed)
    device = choose_device(arguments.device)
    config, settings = build_model(recipe, data.classes).config, settings_of(data, plan)
    tasks = list(itertools.product(range(arguments.seeds), range(plan.folds)))
    results_of = {task: result_of(arguments.output, task) for task in tasks}
    teachers = find_teachers(plan, [task for task in tasks if not results_of[task].exists()], settings, config)
    counts = {len(teachers[t]) if t in teachers else json.loads(results_of[t].read_text())["teachers"] for t in tasks}
    if len(counts) > 1:  # a teacher that is still in training, or has got more seeds meanwhile
        raise SystemExit(f"some models would have {' and some '.join(map(str, sorted(counts)))} teachers")
    see(data, recipe, config, plan.views, arguments.views, arguments.jobs)
    agree_on_settings(arguments.output, settings)
    where = (arguments.output, arguments.views, str(device))
    given = [(data, plan, task, teachers.get(task, []), *where) for task in tasks]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        done = dict(zip(tasks, pool.map(run_fold, *zip(*given, strict=True)), strict=True))
    names, runs, tables = ("accuracy", "macro_f1", "ece", "aurc"), [], []
    labels = [label for fold in range(plan.folds) for label in done[0, fold]["labels"]]
    for seed in range(arguments.seeds):
        folds = [done[seed, fold] for fold in range(plan.folds)]
        tables.append(np.concatenate([fold["scores"] for fold in folds]))
        runs.append(judge(tables[-1], labels, data.classes))
        runs[-1]["accuracy_by_fold"] = [accuracy(fold) for fold in folds]
        print(f"seed {seed}: " + "  ".join(f"{k} {runs[-1][k]:.3f}" for k in (*names, "log_loss")))
    summary = {name: spread([run[name] for run in runs]) for name in (*names, "log_loss")}
    averaged = judge(np.mean(tables, axis=0), labels, data.classes)
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    machine = {"device": describe_device(device), "cores": arguments.jobs, "platform": platform.platform()}
    results = {**settings, "seeds": arguments.seeds, "summary": summary, "seeds averaged": averaged}
    results |= {"teachers per model": counts.pop(), "runs": runs, "versions": versions, "machine": machine}
    results["command"] = " ".join(["python", "examples/benchmarks/leave_source_out.py", "documents.csv", *sys.argv[2:]])
    draw_confusion(runs, data.classes, arguments.output / "confusion.png")
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def log_losses(table: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Of each document (documents,), given scores (documents, classes)."""
    losses: np.ndarray = -np.log(table[range(len(labels)), labels].clip(1e-9))
    return losses


def judge(table: np.ndarray, labels: list[int], classes: tuple[str, ...]) -> dict[str, Any]:
    """The metrics of scores (documents, classes), and their log loss."""
    return {**report(table, labels, classes).as_dict(), "log_loss": float(log_losses(table, labels).mean())}


if __name__ == "__main__":
    main()
