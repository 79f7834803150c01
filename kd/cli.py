"""The commands: `kd distill | bench`.

Nothing here imports torch, or what does, before a command runs.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from docvit.cli import defaults, options
from docvit.cli.app import Application
from docvit.cli.entry import fail, run
from docvit.cli.output import print_last
from docvit.cli.train import read_parts
from docvit.model.variants import list_variants

if TYPE_CHECKING:
    from docvit.data.labels import LabelledDocuments
    from docvit.training.recipe import Recipe
    from kd.config import DistillConfig

SOFT_LOSSES = ("soft-targets", "standardised", "dkd", "dist")

ALPHA, TEMPERATURE = 0.5, 4.0

app = Application()

bench = typer.Typer(help="Benchmarks.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@app.callback()
def kd(version: options.Version = False) -> None:
    """Distil knowledge from large networks into small ones, and measure it."""


class PresetName(str, Enum):
    report, modern, smoke = "report", "modern", "smoke"


@app.command()
def distill(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with one subfolder per class, or CSV with path,label; for ONNX networks alone also any folder "
            "of documents, or CSV with a column path."
        ),
    ],
    output: options.Output,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR|FILE.onnx:OUTPUT|self",
            help="Model folder or hub id; several are averaged. FILE.onnx:OUTPUT: patches and pages learn what an ONNX "
            "network sees at their address (its output, or an activation inside it); repeatable. self: the student's "
            "moving average (mean teacher).",
        ),
    ] = None,
    teacher_probabilities: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CSV",
            help="Predictions of any classifier, as one more teacher: path and one column per class; repeatable.",
        ),
    ] = None,
    student: Annotated[
        str,
        typer.Option(
            metavar="NAME|DIR",
            help=f"Variant to train from scratch ({', '.join(list_variants())}), or a model folder to begin from.",
        ),
    ] = defaults.MODEL,
    labels: Annotated[
        bool, typer.Option("--labels", help="Learn labels from DATA also where all teachers are ONNX networks.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="Weight of the soft targets; the labels have the rest.")] = ALPHA,
    temperature: Annotated[float, typer.Option(help="Softens the outputs of teacher and student.")] = TEMPERATURE,
    soft: Annotated[str, typer.Option(help=f"Kind of soft targets: {', '.join(SOFT_LOSSES)}.")] = SOFT_LOSSES[0],
    features: Annotated[
        list[str] | None,
        typer.Option(
            "--feature",
            metavar="STATE=WEIGHT",
            help="Features to match: pages, document, embed, blocks.I (-1 the last) or STUDENT:TEACHER; repeatable.",
        ),
    ] = None,
    simkd: Annotated[
        bool, typer.Option("--simkd", help="Take over the teacher's classifier and learn its features (SimKD).")
    ] = False,
    consistency: Annotated[
        float,
        typer.Option(
            help="With --teacher self: weight of the consistency with it, on the same pages augmented differently."
        ),
    ] = 0.0,
    unlabelled: Annotated[
        Path | None,
        typer.Option(metavar="DIR|CSV", help="Documents, new or the same, for soft targets without labels."),
    ] = None,
    fine_tune: Annotated[int, typer.Option(min=0, help="Epochs on labels alone afterwards.")] = 0,
    ema: options.EMA = defaults.EMA_DECAY,
    positions: options.Positions = None,
    scopes: options.Scopes = None,
    page_size: options.PageSize = None,
    words: options.WordBuckets = None,
    ocr: options.OCR = False,
    ocr_pages: options.OCRPages = defaults.OCR_PAGES,
    lose_words: options.LoseWords = defaults.LOSE_WORDS,
    word_dropout: options.WordDropout = defaults.WORD_DROPOUT,
    epochs: options.Epochs = defaults.EPOCHS,
    lr: options.LearningRate = defaults.LEARNING_RATE,
    budget: options.Budget = defaults.BUDGET,
    max_pages: options.PagesSeen = defaults.MAX_PAGES,
    mix_pages: options.MixPages = defaults.MIX_PAGES,
    packets: options.Packets = defaults.PACKETS,
    seed: options.Seed = 0,
    valid: Annotated[
        Path | None, typer.Option(help="Evaluate on these after every epoch, and compare with the teacher in the end.")
    ] = None,
    group_by: options.GroupBy = None,
    fold: options.Fold = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Cache the teachers' outputs there, for further students.")
    ] = None,
    password: options.Password = None,
    resume: options.Resume = False,
    workers: options.Workers = 2,
    device: options.Device = None,
) -> None:
    """Distil a DocViT into another, of any width, depth, patch size, scopes and positions.

    ONNX networks need no labels: without --labels the student has no classes; train it with `docvit train --init DIR`.
    Given documents to evaluate on, the model folder also gets comparison.md, .json and .png: student beside teacher.
    Ctrl-C leaves a checkpoint that --resume continues exactly.
    """
    from docvit.data.unlabelled import find_unlabelled
    from docvit.model.docvit import DocViT
    from docvit.training.loop import TrainSettings
    from docvit.training.run_folder import read_recipe
    from kd.config import DistillConfig
    from kd.documents.onnx_network import is_onnx
    from kd.documents.run import SELF, distill_documents, read_config, recipe_for

    read = options.words_options(context, no_words=False, ocr=ocr, ocr_pages=ocr_pages)
    given = {"positions": positions, "scopes": scopes, "page_size": page_size, "words": words}
    recipe = replace(
        recipe_for(student),
        settings={k: v for k, v in given.items() if v is not None},
        ocr_pages=read["ocr_pages"],
        max_pages=max_pages,
        mix_pages=mix_pages,
        packets=packets,
        lose_words=lose_words,
        word_dropout=word_dropout,
        budget=budget,
        ema=ema,
        train=TrainSettings(epochs=epochs, lr=lr, seed=seed),
    )
    config = DistillConfig(
        alpha=alpha,
        temperature=temperature,
        soft=soft,
        features=dict(_weighted(feature) for feature in features or []),
        simkd=simkd,
        consistency=consistency,
        fine_tune=fine_tune,
    )
    if resume:
        options.check_resumed(context, _options(recipe, config), _options(read_recipe(output), read_config(output)))
    named = teacher or []
    only_onnx = bool(named) and not teacher_probabilities and all(map(is_onnx, named))
    if only_onnx:
        of_soft_targets = [f"--{name}" for name in ("alpha", "temperature", "soft") if options.is_given(context, name)]
        if of_soft_targets:
            fail(f"ONNX networks give no soft targets for {', '.join(of_soft_targets)}: give a model as teacher, too")
    teachers = [name if name == SELF or is_onnx(name) else DocViT.from_pretrained(name) for name in named]
    documents: LabelledDocuments | list[str]
    reading: dict[str, Any] = {"workers": workers, "password": password}
    if labels or not only_onnx:
        classes = next((model.config.classes for model in teachers if not isinstance(model, str)), ())
        documents, held_out = read_parts(data, valid, fold, group_by=group_by, classes=classes, **reading)
    elif valid is not None or fold is not None or group_by is not None or packets:
        fail("--valid, --fold, --group-by and --packets need labels: give --labels, too")
    else:
        documents, held_out = find_unlabelled(data), None
    done = distill_documents(
        recipe,
        teachers,
        documents,
        output,
        config,
        valid=held_out,
        unlabelled=find_unlabelled(unlabelled) if unlabelled is not None else (),
        teacher_probabilities=teacher_probabilities or (),
        resume=resume,
        device=device,
        teacher_cache=teacher_cache,
        **reading,
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


def _options(recipe: Recipe, config: DistillConfig) -> dict[str, Any]:
    return {**config.as_dict(), **options.of_recipe(recipe), "student": recipe.init or recipe.model}


@bench.command()
def cifar10(
    data: Annotated[Path, typer.Option(metavar="DIR", help="CIFAR-10: official files, or one folder per class.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where results.json, report.md and the curves go.")],
    preset: Annotated[
        PresetName,
        typer.Option(help="The report as it stands, its networks trained as one would today, or a quick look."),
    ] = PresetName.report,
    seeds: Annotated[int | None, typer.Option(min=1, help="Repetitions (default: report 5, modern 3, smoke 1)")] = None,
    teachers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train large networks for the first seeds only; students of further seeds share them (default: all)",
        ),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="TABLE", help="This table only; repeatable.")] = None,
    images: Annotated[
        int | None, typer.Option(min=10, help="Train and test on this many images only; the report says so.")
    ] = None,
    width: Annotated[
        float | None, typer.Option(min=0.01, help="Factor on the teacher's channels; the report says so.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="At most this many epochs per network: a quick look that proves nothing.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 into --data first.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... (default: cuda if there is one)")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Compile the networks (default: on CUDA)")
    ] = None,
) -> None:
    """Repeat every table and curve of the CIFAR-10 report; interrupted, the same command goes on."""
    from kd.cifar10.files import download as download_cifar10
    from kd.cifar10.files import load
    from kd.cifar10.presets import PRESETS
    from kd.cifar10.run import bench_cifar10

    if download:
        download_cifar10(data)
    chosen = PRESETS[preset.value]
    chosen = chosen if images is None else chosen.limited(images)
    chosen = chosen if epochs is None else chosen.shortened(epochs)
    chosen = chosen if width is None else replace(chosen, teacher_width=width)
    running: dict[str, Any] = {"seeds": seeds, "teachers": teachers, "device": device, "compile": compile}
    bench_cifar10(load(data), output, chosen, only=only or (), **running)
    print(output / "report.md")


def main() -> None:
    """Entry point of `kd`."""
    run(app)
