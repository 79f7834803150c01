"""Accuracy on sources never trained on: every fold leaves whole sources out, one model a fold and seed.

    python examples/benchmarks/leave_source_out.py DOCUMENTS.csv --output runs/sources
    python examples/benchmarks/leave_source_out.py DOCUMENTS.csv --output runs/large --set embed_dim=256 --set depth=8
    python examples/benchmarks/leave_source_out.py DOCUMENTS.csv --output runs/distilled --teachers runs/large

DOCUMENTS.csv has the columns path, label and source_repo. Folds are scikit-learn's StratifiedGroupKFold(5). A run that
is finished is not repeated, an interrupted one goes on; under other settings than those in settings.json neither. With
`--teachers`, outputs of this script, the model of a seed and fold also learns from theirs of the same seed and fold,
which saw the same sources. Writes results.json: the pooled predictions of all folds scored once per seed (last epoch,
never the best), mean and spread over seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import statistics
import sys
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

from docvit.classify import DocumentClassifier
from docvit.data import LabelledDocuments, read_labelled
from docvit.hardware import choose_device
from docvit.metrics import report
from docvit.prepare import Place, render_all
from docvit.recipes import RECIPE, Recipe, build_model, split_groups, train_documents
from docvit.train import CHECKPOINT, TrainSettings
from kd.documents import distill_documents
from kd.results import describe_device, differences
from kd.teaching import Teaching

SETTINGS = "settings.json"


def scores(classifier: DocumentClassifier, held_out: LabelledDocuments) -> np.ndarray:
    rows = list(classifier.predict(held_out.paths))
    return np.array([[row.scores[name] for name in held_out.classes] for row in rows])


@dataclass(frozen=True)
class Plan:
    """How every model is trained, but for its seed and fold.

    Attributes:
        teachers: outputs of this script.
        teaching: how much is learnt from them, if there are any.
    """

    recipe: Recipe
    folds: int
    teachers: tuple[str, ...]
    teaching: Teaching


def run_fold(data: LabelledDocuments, plan: Plan, seed: int, fold: int, output: Path, device: str) -> dict[str, list]:
    place = Path(f"seed-{seed}") / f"fold-{fold + 1}"
    folder, recipe = output / place, replace(plan.recipe, train=replace(plan.recipe.train, seed=seed))
    result = folder / "predictions.json"
    if not result.exists():
        training, held_out = split_groups(data, fold, plan.folds)
        resume = (folder / RECIPE).exists() and (folder / CHECKPOINT).exists()
        if plan.teachers:
            teachers = [teacher / place for teacher in map(Path, plan.teachers)]
            distill_documents(recipe, teachers, training, folder, plan.teaching, resume=resume, device=device)
        else:
            train_documents(training, folder, recipe, resume=resume, device=device)
        predicted = scores(DocumentClassifier.from_pretrained(folder, device=device), held_out)
        result.write_text(json.dumps({"scores": predicted.tolist(), "labels": list(held_out.labels)}))
    return json.loads(result.read_text())


def settings_of(data: LabelledDocuments, plan: Plan) -> dict[str, Any]:
    """All that the runs depend on, but for their seeds."""
    about = [[Path(path).name for path in data.paths], data.labels, data.classes, data.groups]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    taught = {"teachers": plan.teachers, "teaching": asdict(plan.teaching)} if plan.teachers else {}
    data_seen = {"documents": len(data), "sha256": digest}
    return {"folds": plan.folds, "data": data_seen, "recipe": asdict(plan.recipe), **taught}


def agree_on_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Notes the settings of the runs in `folder`; ends the program where those there had others."""
    asked, file = json.loads(json.dumps(settings)), folder / SETTINGS
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asked, indent=1) + "\n")
    elif differing := differences(json.loads(file.read_text()), asked):
        raise SystemExit(f"{folder} holds results of other settings: {'; '.join(differing)}")


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
    parser.add_argument("--group-by", default="source_repo")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=TrainSettings.epochs)
    parser.add_argument("--model", default=Recipe.model, help="name of a variant")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of DocViTConfig")
    parser.add_argument(
        "--teachers", nargs="+", default=[], metavar="RUNS", help="outputs of this script to learn from"
    )
    parser.add_argument("--alpha", type=float, default=Teaching.alpha)
    parser.add_argument("--temperature", type=float, default=Teaching.temperature)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="folds trained side by side, sharing the cores")
    arguments = parser.parse_args()
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    changes = {name: _value(text) for name, _, text in (change.partition("=") for change in arguments.set)}
    recipe = Recipe(arguments.model, settings=changes, train=TrainSettings(epochs=arguments.epochs))
    teaching = Teaching(alpha=arguments.alpha, temperature=arguments.temperature)
    plan = Plan(recipe, arguments.folds, tuple(arguments.teachers), teaching)
    device = choose_device(arguments.device)
    # what cannot be read is known before anything is trained
    render_all(data.paths, build_model(recipe, data.classes).config.rendering, Place(torch.device("cpu")))
    agree_on_settings(arguments.output, settings_of(data, plan))
    runs = []
    cores = torch.get_num_threads()
    for seed in range(arguments.seeds):
        tasks = [(data, plan, seed, fold, arguments.output, str(device)) for fold in range(plan.folds)]
        with ProcessPoolExecutor(
            arguments.jobs, get_context("spawn"), torch.set_num_threads, (max(1, cores // arguments.jobs),)
        ) as pool:
            folds = list(pool.map(run_fold, *zip(*tasks, strict=True)))
        labels = [label for fold in folds for label in fold["labels"]]
        runs.append(report(np.concatenate([fold["scores"] for fold in folds]), labels, data.classes).as_dict())
        runs[-1]["accuracy_by_fold"] = [accuracy(fold) for fold in folds]
        print(f"seed {seed}: " + "  ".join(f"{k} {runs[-1][k]:.3f}" for k in ("accuracy", "macro_f1", "ece", "aurc")))
    names = ("accuracy", "macro_f1", "ece", "aurc")
    summary = {name: spread([run[name] for run in runs]) for name in names}
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    machine = {"device": describe_device(device), "cores": cores, "platform": platform.platform()}
    results = {**settings_of(data, plan), "seeds": arguments.seeds, "summary": summary}
    results |= {"runs": runs, "versions": versions, "machine": machine}
    results["command"] = " ".join(["python", "examples/benchmarks/leave_source_out.py", "documents.csv", *sys.argv[2:]])
    draw_confusion(runs, data.classes, arguments.output / "confusion.png")
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
