"""The folder of a run: what it was begun with, and whether it is the same run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from docvit.data.augment import Augmentation
from docvit.files import replaced
from docvit.model.folder import CONFIG, WEIGHTS
from docvit.training.loop import CHECKPOINT, TrainingError, TrainSettings
from docvit.training.recipe import AnyRecipe, Recipe

RECIPE = "recipe.json"


def read_recipe(folder: str | os.PathLike[str], kind: type[AnyRecipe] = Recipe) -> AnyRecipe:  # type: ignore[assignment]
    """The recipe of the run in `folder`.

    Args:
        kind: what it is to be: `Recipe`, or another dataclass with `augmentation` and `train`.

    Raises:
        TrainingError: the folder holds no run, or one of another kind.
    """
    file = Path(folder) / RECIPE
    values = read_manifest(file)
    try:
        nested = {"augmentation": Augmentation(**values["augmentation"]), "train": TrainSettings(**values["train"])}
        return kind(**{**values, **nested})
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"{file} is damaged, or of another kind of run: {error}") from error


def agree_on_recipe(folder: Path, recipe: AnyRecipe, *, resume: bool, epochs: int | None = None) -> AnyRecipe:
    """The recipe of a run in `folder`: the given one for a new run, the run's own where it is resumed.

    Args:
        epochs: of a run that is resumed to go on for longer than it was begun for.

    Raises:
        TrainingError: `folder` holds another run, none to resume, one of more epochs, or is no folder.
    """
    if resume:
        own: Any = read_recipe(folder, type(recipe))
        if epochs is not None and epochs < own.train.epochs:
            raise TrainingError(f"the run in {folder} has {own.train.epochs} epochs, and can go on for more, not fewer")
        return own if epochs is None else replace(own, train=replace(own.train, epochs=epochs))
    check_unused(folder)
    return recipe


def write_recipe(folder: Path, recipe: Any) -> None:
    """Writes `recipe.json`, creating the folder."""
    write_manifest(folder / RECIPE, asdict(recipe))


def check_unused(folder: Path, way: str = "resume it (--resume)") -> None:
    """Raises TrainingError if `folder` holds a file of a run already, or is no folder; `way` is what to do with it."""
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder: choose another output")
    for name in (CHECKPOINT, WEIGHTS, CONFIG):
        if (folder / name).exists():
            raise TrainingError(f"{folder} already holds a run ({name}): {way}, or choose another output")


def read_manifest(file: Path) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises:
        TrainingError: there is no such file, or it is damaged.
    """
    if not file.is_file():
        raise TrainingError(f"{file.parent} holds no {file.name}: there is no run to resume")
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise TrainingError(f"{file} is damaged: it holds no settings")
    return found


def write_manifest(file: Path, values: Mapping[str, Any]) -> None:
    """Writes what a run is begun with as JSON, creating the folder; the file is replaced in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as partial:
        partial.write_text(json.dumps(values, indent=1) + "\n")


def check_same(file: Path, found: Any, asked: Any) -> None:
    """Raises TrainingError, which names every difference, unless both are the same JSON."""
    differing = differences(found, json.loads(json.dumps(asked)))
    if differing:
        raise TrainingError(f"{file.parent} was begun with other settings or data: {'; '.join(differing)}")


def agree_on_run(file: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
    """Writes what a new run is begun with; a run that is resumed must have been begun with the same.

    Of several processes the first one writes.

    Raises:
        TrainingError: the folder of `file` holds another run, or none to resume; says what differs.
    """
    if resume:
        check_same(file, read_manifest(file), asked)
    elif not dist.is_initialized() or dist.get_rank() == 0:
        check_unused(file.parent)
        write_manifest(file, asked)


def open_folder(file: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What lies in `file`, in a folder that many runs share: written now if the folder is new or empty.

    Raises:
        TrainingError: the folder is none, holds something else, or was begun with other values of the keys in `asked`.
    """
    folder = file.parent
    if folder.exists() and not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder: choose another one")
    if not file.is_file():
        # a manifest half written is another process's, or what an interruption left
        if folder.is_dir() and any(f.suffix != ".tmp" for f in folder.iterdir()):
            raise TrainingError(f"{folder} is not empty and holds no {file.name}: choose another folder")
        write_manifest(file, asked)
    found = read_manifest(file)
    if absent := [key for key in asked if key not in found]:
        raise TrainingError(f"{file} is damaged, or of something else: it has no {', '.join(absent)}")
    check_same(file, {key: found[key] for key in asked}, asked)
    return found


def differences(found: Any, asked: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, one line per difference: "train lr was 0.1, not 0.2"."""
    if isinstance(found, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*found, *asked])
        return [line for key in keys for line in differences(found.get(key), asked.get(key), f"{path} {key}".strip())]
    if isinstance(found, list) and isinstance(asked, list) and len(found) == len(asked):
        pairs = zip(found, asked, strict=True)
        return [line for n, (a, b) in enumerate(pairs) for line in differences(a, b, f"{path} {n + 1}")]
    return [] if found == asked else [f"{path} was {found!r}, not {asked!r}"]
