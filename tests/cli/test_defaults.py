"""The constants behind the help texts are those of the library."""

from __future__ import annotations

import typer

from docvit import cli
from docvit.cli import defaults
from docvit.documents.ocr import OCR_SECONDS
from docvit.inference.split import MOST_PAGES
from docvit.inference.strategies import STRATEGIES
from docvit.training.masked import PretrainRecipe
from docvit.training.masked_model import TARGETS
from docvit.training.recipe import Recipe


def test_names_are_those_of_the_registries():
    assert tuple(STRATEGIES) == defaults.STRATEGIES
    assert tuple(TARGETS) == defaults.TARGETS


def test_numbers_are_those_of_the_library():
    assert defaults.OCR_SECONDS == OCR_SECONDS
    assert defaults.SPLIT_PAGES == MOST_PAGES


def check_defaults(command, recipe):
    """Every option that is called like a field of the recipe has its default; returns how many there are."""
    compared = 0
    for option in typer.main.get_command(cli.app).commands[command].params:
        for part in (recipe, recipe.train):
            if hasattr(part, option.name) and option.name != "ocr_pages":  # 0 in recipes, where nobody asked for OCR
                assert option.default == getattr(part, option.name), option.name
                compared += 1
    return compared


def test_scans_are_those_of_the_augmentation():
    assert Recipe().augmentation.scan == defaults.SCANS


def test_defaults_of_options_are_those_of_the_recipes():
    assert check_defaults("train", Recipe()) >= 11
    assert check_defaults("pretrain", PretrainRecipe()) >= 8
