"""The folder of a run: its recipe, and whether it is the same run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from docvit.data.augment import Augmentation
from docvit.model.pretrained import WEIGHTS
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


def differences(found: Any, asked: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, one line a place: "train lr was 0.1, not 0.2"."""
    if isinstance(found, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*found, *asked])
        return [told for key in keys for told in differences(found.get(key), asked.get(key), f"{path} {key}".strip())]
    if isinstance(found, list) and isinstance(asked, list) and len(found) == len(asked):
        pairs = zip(found, asked, strict=True)
        return [told for n, (a, b) in enumerate(pairs) for told in differences(a, b, f"{path} {n + 1}")]
    return [] if found == asked else [f"{path} was {found!r}, not {asked!r}"]
