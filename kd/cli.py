"""The commands: `kd distill | bench`."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from docvit.cli.entry import fail, run
from docvit.cli.options import (
    EMA,
    Budget,
    Device,
    Fold,
    GroupBy,
    LearningRate,
    MixPages,
    Output,
    PageSize,
    PagesSeen,
    PositionsOption,
    Resume,
    Scopes,
    Seed,
    Workers,
    check_resumed,
    options_of,
)
from docvit.cli.output import print_last
from docvit.cli.train import read_parts
from docvit.data.unlabelled import find_unlabelled
from docvit.model.pretrained import load_pretrained
from docvit.model.variants import list_variants
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from docvit.training.run_folder import read_recipe
from kd.cifar10.files import download as download_cifar10
from kd.cifar10.files import load
from kd.cifar10.presets import PRESETS, Preset
from kd.cifar10.run import bench_cifar10
from kd.documents.run import SELF, distill_documents, read_teaching, recipe_for
from kd.losses import SOFT_LOSSES
from kd.teaching import Teaching

app = typer.Typer(
    help="Distil knowledge from large networks into small ones, and measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

bench = typer.Typer(help="Benchmarks.", no_args_is_help=True)
app.add_typer(bench, name="bench")


class PresetName(str, Enum):
    report, modern, smoke = "report", "modern", "smoke"


@app.command()
def distill(
    context: typer.Context,
    data: Annotated[Path, typer.Argument(help="Folder with a sub folder a class, or CSV with path,label.")],
    teacher: Annotated[
        list[str],
        typer.Option(
            metavar="DIR|self",
            help="Model folder or hub id; several are averaged. self: the student's moving average (mean teacher).",
        ),
    ],
    output: Output,
    student: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help=f"Variant to train from scratch ({', '.join(list_variants())}), or a model folder to begin from.",
        ),
    ] = Recipe.model,
    alpha: Annotated[
        float, typer.Option(help="Weight of the soft targets; the labels have the rest.")
    ] = Teaching.alpha,
    temperature: Annotated[float, typer.Option(help="Softens teacher and student.")] = Teaching.temperature,
    soft: Annotated[str, typer.Option(help=f"Kind of soft targets: {', '.join(SOFT_LOSSES)}.")] = Teaching.soft,
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            metavar="STATE=WEIGHT",
            help="Features to match: pages, document, embed, blocks.I (-1 the last) or STUDENT:TEACHER; repeatable.",
        ),
    ] = None,
    simkd: Annotated[
        bool, typer.Option("--simkd", help="Take over the teacher's classifier, learn its features.")
    ] = False,
    consistency: Annotated[
        float,
        typer.Option(help="With --teacher self: weight of agreeing with it on the same pages, changed otherwise."),
    ] = Teaching.consistency,
    unlabelled: Annotated[
        Path | None,
        typer.Option(metavar="DIR|CSV", help="Documents, new or the same, to learn what teachers say of them."),
    ] = None,
    fine_tune: Annotated[int, typer.Option(min=0, help="Epochs on labels alone afterwards.")] = Teaching.fine_tune,
    ema: EMA = Recipe.ema,
    positions: PositionsOption = None,
    scopes: Scopes = None,
    page_size: PageSize = None,
    epochs: Annotated[int, typer.Option(min=1)] = TrainSettings.epochs,
    lr: LearningRate = TrainSettings.lr,
    budget: Budget = Recipe.budget,
    max_pages: PagesSeen = Recipe.max_pages,
    mix_pages: MixPages = Recipe.mix_pages,
    seed: Seed = 0,
    valid: Annotated[
        Path | None, typer.Option(help="Evaluate on these after every epoch, and compare with the teacher in the end.")
    ] = None,
    group_by: GroupBy = None,
    fold: Fold = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep what the teachers say, for further students.")
    ] = None,
    resume: Resume = False,
    workers: Workers = 2,
    device: Device = None,
) -> None:
    """Distil a DocViT into another, of any width, depth, patch size, scopes and positions.

    Given documents to evaluate on, the model folder also gets comparison.md, .json and .png: student beside teacher.
    Ctrl-C leaves a checkpoint that --resume continues exactly.
    """
    given = {"positions": positions, "scopes": scopes, "page_size": page_size}
    recipe = replace(
        recipe_for(student),
        settings={k: v for k, v in given.items() if v is not None},
        max_pages=max_pages,
        mix_pages=mix_pages,
        budget=budget,
        ema=ema,
        train=TrainSettings(epochs=epochs, lr=lr, seed=seed),
    )
    teaching = Teaching(
        alpha=alpha,
        temperature=temperature,
        soft=soft,
        features=dict(_weighted(feature) for feature in features or []),
        simkd=simkd,
        consistency=consistency,
        fine_tune=fine_tune,
    )
    if resume:
        check_resumed(context, _options(recipe, teaching), _options(read_recipe(output), read_teaching(output)))
    teachers = [name if name == SELF else load_pretrained(name) for name in teacher]
    classes = next((model.config.classes for model in teachers if not isinstance(model, str)), ())
    labelled, held_out = read_parts(data, valid, fold, group_by=group_by, workers=workers, classes=classes)
    done = distill_documents(
        recipe,
        teachers,
        labelled,
        output,
        teaching,
        valid=held_out,
        unlabelled=find_unlabelled(unlabelled) if unlabelled is not None else (),
        resume=resume,
        device=device,
        teacher_cache=teacher_cache,
        workers=workers,
    )
    print_last(output, done.fine_tuning or done.history)
    if done.comparison is not None:
        print(f"\n{done.comparison.markdown()}", end="")


def _weighted(feature: str) -> tuple[str, float]:
    name, _, weight = feature.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        fail(f"--feature {feature}: write STATE=WEIGHT, such as pages=1")


def _options(recipe: Recipe, teaching: Teaching) -> dict[str, Any]:
    return {**options_of(recipe), **asdict(teaching), "student": recipe.init or recipe.model}


@bench.callback()
def _benchmarks() -> None:
    """Benchmarks."""


@bench.command()
def cifar10(
    data: Annotated[Path, typer.Option(metavar="DIR", help="CIFAR-10: official files, or a folder a class.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where results.json, report.md and the curves go.")],
    preset: Annotated[
        PresetName,
        typer.Option(help="The report as it stands, its networks trained as one would today, or a quick look."),
    ] = PresetName.report,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions (default: report 5, modern 3, smoke 1)")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Just this table; may be given several times.")
    ] = None,
    images: Annotated[int | None, typer.Option(min=10, help="Train and test on so many only, and say so.")] = None,
    width: Annotated[float | None, typer.Option(min=0.01, help="Factor on the teacher's channels, and say so.")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most so many a network: a quick look that proves nothing.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 into --data first.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: cuda if there is one)")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile the networks (default: on CUDA)")
    ] = None,
) -> None:
    """Repeat every table and curve of the CIFAR-10 report; interrupted, the same command goes on."""
    if download:
        download_cifar10(data)
    chosen = _adjust(PRESETS[preset.value], images, width, epochs)
    bench_cifar10(load(data), output, chosen, seeds=seeds, device=device, only=only or (), compile=compile)
    print(output / "report.md")


def _adjust(preset: Preset, images: int | None, width: float | None, epochs: int | None) -> Preset:
    preset = preset if images is None else preset.limited(images)
    preset = preset if epochs is None else preset.shortened(epochs)
    return preset if width is None else replace(preset, teacher_width=width)


def main() -> None:
    """Entry point: whatever is wrong with the user's files ends in one line, never in a traceback."""
    run(app)
