"""The report in words: tables beside the numbers they repeat, and a verdict on every claim."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student_t

from docvit.files import replaced
from docvit.training.loop import TrainSettings
from kd.cifar10.plots import draw_figures
from kd.cifar10.presets import Preset, Stage
from kd.cifar10.results import Results
from kd.cifar10.tables import Claim, Metric, Sample, Table
from kd.config import DistillConfig


def write_report(results: Results, preset: Preset, tables: Sequence[Table]) -> None:
    """Writes report.md and the curves of what is there; each file is replaced in one step."""
    drawn = draw_figures(results, preset)
    parts = [_header(results, preset), *(_table(table, results, preset) for table in tables)]
    if drawn:
        parts.append("## Curves\n\nMeans over seeds; bands are one standard deviation.\n")
        parts += [f"![{name}]({file.name})\n" for name, file in drawn.items()]
    warnings = [f"- {run}: {warning}" for run in results.runs for warning in results.runs[run]["warnings"]]
    if warnings:
        parts.append("\n".join(["## Warnings", "", *warnings, ""]))
    with replaced(results.folder / "report.md") as partial:
        partial.write_text("\n".join(parts))


def _header(results: Results, preset: Preset) -> str:
    data, runs = results.settings["data"], list(results.runs.values())
    stages = [f"| {s.name} | {_settings(s.train)}{_rise(s)} |" for s in preset.stages]
    lines = [
        f"# CIFAR-10 distillation: the {preset.name} preset",
        "",
        *_reservations(preset, data),
        f"- Data: {data['train']:,} training and {data['test']:,} test images; the training loss and accuracy are "
        f"measured on {min(preset.measured_images, data['train']):,} of the training images after each epoch.",
        f"- Networks: {_networks(runs)}; initialisation {preset.init!r}.",
        f"- Augmentation: {_augmentation(preset)}.",
        f"- Batches of {preset.batch_size}; temperature {DistillConfig.temperature:g}, and the factor T² of the soft "
        f"targets is kept; moving averages with a decay of {preset.decay} and a warm-up.",
        f"- Arithmetic: {results.settings['precision']}. Device: {_all(run['device'] for run in runs)}. "
        f"PyTorch {_all(run['versions']['torch'] for run in runs)}.",
        "- Rows say mean ± standard deviation over seeds, and how many. Verdicts rest on the differences seed by seed "
        "(same start, same batches) with 95 % intervals.",
        *_shared_teachers(runs),
        "",
        "| stage | loop |",
        "|---|---|",
        *stages,
        "",
    ]
    return "\n".join(lines)


def _reservations(preset: Preset, data: dict[str, Any]) -> list[str]:
    """In bold, all that sets these numbers apart from those of the whole networks on the whole data."""
    found = []
    if not preset.conclusive:
        found.append("this is a quick look that shows that everything runs; it says nothing about the report")
    for net, width in (("teacher", preset.teacher_width), ("student", preset.student_width)):
        if width != 1:
            found.append(f"the {net} has {width:g} times the report's channels")
    if data["train"] < 50_000 or data["test"] < 10_000:
        found.append(f"only {data['train']:,} + {data['test']:,} of 50,000 + 10,000 images")
    return [f"**Not at full scale: {'; '.join(found)}.**", ""] if found else []


def _shared_teachers(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Which students have the teacher of another seed, so that their spread is not that of teachers."""
    pairs = {(run["seed"], run["teacher_seed"]) for run in runs if run.get("teacher_seed") is not None}
    shared = [f"of seed {seed} that of seed {teacher}" for seed, teacher in sorted(pairs) if seed != teacher]
    if not shared:
        return []
    return [
        f"- Not every seed has a teacher of its own: students {', '.join(shared)}. Their spread leaves teachers out."
    ]


def _rise(stage: Stage) -> str:
    shares = {config.ramp_up or 0.0 for config in stage.networks.values()} - {0.0}
    return "".join(f"; soft targets rise to their weight over {share:.0%} of the steps" for share in sorted(shares))


def _settings(train: TrainSettings) -> str:
    optimizer = "sgd" if train.optimizer == "momentum" else train.optimizer
    decay = f", weight decay {train.weight_decay:g}" if train.weight_decay else ""
    return f"{train.epochs} epochs, {optimizer}, learning rate {train.lr:g} ({train.schedule}){decay}"


def _networks(runs: Sequence[dict[str, Any]]) -> str:
    sizes = {}
    for run in runs:
        kind = "teacher" if run["stage"] in ("teacher", "mean-teacher") else "student"
        sizes[kind] = next(iter(run["networks"].values()))["parameters"]
    return ", ".join(f"{kind} with {count:,} parameters" for kind, count in sorted(sizes.items())) or "none yet"


def _augmentation(preset: Preset) -> str:
    if preset.augment is None:
        return "none"
    cutout = f", a square of {preset.augment.cutout} px blanked" if preset.augment.cutout else ""
    return f"shifts by up to {preset.augment.crop} px{', mirror images' if preset.augment.flip else ''}{cutout}"


def _all(values: Any) -> str:
    return ", ".join(dict.fromkeys(values)) or "none yet"


def _table(table: Table, results: Results, preset: Preset) -> str:
    samples = [cell.sample(results) for cell in table.cells]
    lines = [f"## {table.title} (`{table.name}`)", "", "| | here | the report | runs |", "|---|---|---|---|"]
    for cell, sample in zip(table.cells, samples, strict=True):
        reported = "" if cell.reported is None else f"{cell.reported:g}"
        epochs = preset.stage(cell.stage).train.epochs
        label = f"{cell.label} (after {epochs})" if cell.epoch > epochs else cell.label
        lines.append(f"| {label} | {_mean(sample, cell.metric)} | {reported} | {len(sample)} |")
    lines += ["", verdict(table, samples, conclusive=preset.conclusive), ""]
    notes = [table.note, _failure(table, samples) if table.name == "distillation" else ""]
    lines += [note for text in notes if text for note in (text, "")]
    return "\n".join(lines)


def _mean(sample: Sample, metric: Metric) -> str:
    if not sample:
        return "not run"
    digits = 1 if metric == "test_accuracy" else 3
    spread = f" ± {stdev(sample.values()):.{digits}f}" if len(sample) > 1 else ""
    return f"{fmean(sample.values()):.{digits}f}{spread}"


def _failure(table: Table, samples: Sequence[Sample]) -> str:
    """In how many runs the settings that fail end where the report's number is."""
    rows = [
        f"{sum(value < 12 for value in sample.values())} of {len(sample)} runs ({cell.label})"
        for cell, sample in zip(table.cells, samples, strict=True)
        if cell.stage == "failure" and sample
    ]
    return f"Below 12 %, as the report's number is: {', '.join(rows)}." if rows else ""


def verdict(table: Table, samples: Sequence[Sample], *, conclusive: bool = True) -> str:
    """One sentence: holds, does not hold, or cannot tell, and the differences behind it."""
    compared = [(claim, difference(samples[claim.better], samples[claim.worse])) for claim in table.claims]
    judged = [(claim, *found) for claim, found in compared if found is not None]
    differences = "; ".join(_describe(table, *one) for one in judged)
    if not conclusive:
        return f"**Cannot tell**: too little was trained. {differences}".rstrip() + "."
    if len(judged) < len(compared) or any(half is None for _, _, half in judged):
        return "**Cannot tell**: it takes two seeds or more of every row." + (
            f" So far: {differences}." if differences else ""
        )
    signs = [_sign(table, *one) for one in judged]
    word = "Does not hold" if -1 in signs else "Holds" if 0 not in signs else "Cannot tell"
    if word == "Holds" and any(_sizes_differ(table, *one) for one in judged):
        word = "Holds in direction, not in size"
    if len(set(signs)) > 1:
        word += " as a whole"
    return f"**{word}**: {differences}."


def difference(better: Sample, worse: Sample) -> tuple[float, float | None] | None:
    """Mean of the differences seed by seed, and half of its 95 % interval (Student's t); None without common seeds."""
    pairs = [better[seed] - worse[seed] for seed in better if seed in worse]
    if not pairs:
        return None
    if len(pairs) == 1:
        return pairs[0], None
    return fmean(pairs), float(student_t.ppf(0.975, len(pairs) - 1)) * stdev(pairs) / len(pairs) ** 0.5


def _sign(table: Table, claim: Claim, mean: float, half: float | None) -> int:
    """1 as claimed, -1 the other way round, 0 within the spread."""
    if half is None or abs(mean) <= half:
        return 0
    higher_is_better = table.cells[claim.better].metric == "test_accuracy"
    return 1 if (mean > 0) == higher_is_better else -1


def _reported(table: Table, claim: Claim) -> float | None:
    better, worse = table.cells[claim.better].reported, table.cells[claim.worse].reported
    return None if better is None or worse is None else better - worse


def _sizes_differ(table: Table, claim: Claim, mean: float, half: float | None) -> bool:
    reported = _reported(table, claim)
    return reported is not None and half is not None and abs(reported - mean) > half


def _describe(table: Table, claim: Claim, mean: float, half: float | None) -> str:
    better, worse = table.cells[claim.better], table.cells[claim.worse]
    points = better.metric == "test_accuracy"
    digits, unit = (1, " points") if points else (3, "")
    spread = f" ± {half:.{digits}f}" if half is not None else ""
    reported = _reported(table, claim)
    beside = f" (the report: {reported:+.1f})" if reported is not None else ""
    remark = f" [{claim.remark}]" if claim.remark else ""
    return f"{better.label} over {worse.label}: {mean:+.{digits}f}{spread}{unit}{beside}{remark}"
