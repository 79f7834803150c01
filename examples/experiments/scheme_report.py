"""All positional schemes side by side: the results of three experiments as Markdown, JSON and plots.

    python examples/experiments/scheme_report.py runs examples/benchmarks/results

Reads page_order/results.json, cross_page/results.json and schemes/results.json below the first folder, as far as they
are there, and writes positions.md, positions.json and the plots into the second. Verdicts come from the differences
seed by seed (same fold, same batches) and their intervals, 95 % for all comparisons of a table together; within them,
nothing is called better.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import t as student_t

from docvit.files import replaced

Runs = Sequence[Mapping[str, Any]]
Rows = dict[str, dict[str, dict[int, float]]]  # row -> column -> seed -> value
DEFAULT = "spatial+page"
PREFIX = {"scopes": "scopes ", "strategies": "strategy "}  # some share their names
TASKS = ("reversed", "first-last", "swapped")
COMMANDS = {
    "page_order": "python examples/experiments/page_order.py documents.csv --output runs/page_order",
    "cross_page": "python examples/experiments/cross_page.py --output runs/cross_page",
    "schemes": "python examples/experiments/schemes.py documents.csv --output runs/schemes",
}


def rows_of(runs: Runs, row: str, columns: Iterable[str], *, scale: float = 100.0) -> Rows:
    """The values of `runs` by the field `row`, column and seed; shares become per cent."""
    found: Rows = {}
    for run in runs:
        for column in columns:
            if column in run:
                found.setdefault(run[row], {}).setdefault(column, {})[run["seed"]] = scale * run[column]
    return found


def show(sample: Mapping[int, float], digits: int = 1) -> str:
    if not sample:
        return ""
    spread = f" ± {stdev(sample.values()):.{digits}f}" if len(sample) > 1 else ""
    return f"{fmean(sample.values()):.{digits}f}{spread}"


def table(rows: Rows, columns: Mapping[str, str], title: str, digits: Mapping[str, int] | None = None) -> list[str]:
    """A Markdown table; `columns`: column -> heading."""
    lines = [f"| {title} | {' | '.join(columns.values())} | runs |", "|---|" + "---|" * (len(columns) + 1)]
    for name, values in rows.items():
        cells = [show(values.get(column, {}), (digits or {}).get(column, 1)) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} | {max(len(v) for v in values.values())} |")
    return [*lines, ""]


def compare(rows: Rows, one: str, other: str, column: str, *, among: int = 1) -> tuple[str, int]:
    """A sentence on the difference of two rows, and 1, -1 or, within its interval, 0; none on less than two seeds.

    Of the differences seed by seed, so that what folds have in common, which is most of either row's spread, does not
    count. The interval holds for `among` such comparisons together (Bonferroni), since of many rows one is always ahead
    by chance.
    """
    a, b = rows.get(one, {}).get(column, {}), rows.get(other, {}).get(column, {})
    gaps = [a[seed] - b[seed] for seed in a if seed in b]
    if len(gaps) < 2:
        return "", 0
    mean = fmean(gaps)
    half = float(student_t.ppf(1 - 0.025 / among, len(gaps) - 1)) * stdev(gaps) / len(gaps) ** 0.5
    sign = 0 if abs(mean) <= half else 1 if mean > 0 else -1
    word = {1: "better than", -1: "worse than", 0: "not distinguishable from"}[sign]
    return f"`{one}` is {word} `{other}` ({mean:+.1f} ± {half:.1f} points)", sign


def verdicts(names: Sequence[str], sentences: Sequence[str]) -> list[str]:
    """The sentences, and one on all rows of which too few seeds are there."""
    waiting = [name for name, sentence in zip(names, sentences, strict=True) if not sentence]
    more = [f"open, for want of seeds: {_names(waiting)}"] if waiting else []
    return [*filter(None, sentences), *more]


def reaching(rows: Rows, column: str, goal: float) -> str:
    """Which rows reach `goal` in the mean."""
    names = [f"`{n}`" for n, f in rows.items() if f.get(column) and fmean(f[column].values()) >= goal]
    return ", ".join(names) or "none"


def page_order(runs: Runs, plot: Path) -> list[str]:
    rows = rows_of(runs, "scheme", [*TASKS, *(f"{task} of two" for task in TASKS), "false alarms"])
    blind = [name for name in ("page-independent", "pages-concat") if name in rows]
    counts = sorted({(run["fold"], *run["documents"]) for run in runs})
    text = [
        "Untouched documents and those whose pages were moved, half and half; accuracy in per cent (chance: 50) of one "
        "model per scheme and seed for all three tasks. `of two`: how often the untouched one is found, given both; "
        "`false alarms`: of untouched documents, those that are called moved in one way or another. "
        "Schemes are compared seed by seed, each with a 95 % interval of its own. "
        + "; ".join(f"fold {f}: {a} training documents, {b} of other sources for testing" for f, a, b in counts)
        + ".",
        "",
        *table(rows, {task: task for task in (*TASKS, "false alarms")}, "alone"),
        *table(rows, {f"{task} of two": task for task in TASKS}, "of two"),
    ]
    if blind:
        judged = [*TASKS, *(f"{task} of two" for task in TASKS)]
        worst = max(abs(v - 50) for name in blind for column in judged for v in rows[name].get(column, {}).values())
        text.append(f"- {_names(blind)}: at most {worst:.1f} points away from the 50 % that their construction gives.")
    for task in TASKS:
        text.append(f"- {task}: 90 % or more: {reaching(rows, task, 90)}; 97 % or more: {reaching(rows, task, 97)}.")
        others = [name for name in rows if name != DEFAULT]
        sentences = [compare(rows, name, DEFAULT, task)[0] for name in others]
        text += [f"  - {sentence}" for sentence in verdicts(others, sentences)]
    bars(rows, TASKS, plot, "accuracy, %", chance=50)
    return [*text, "", f"![page order]({plot.name})", ""]


def cross_page(runs: Runs, plot: Path) -> list[str]:
    text = [
        "Accuracy in per cent on new documents as long as those in training, and on longer ones. What each task asks, "
        "and why some must stay at chance, stands at the top of the script.",
        "",
    ]
    tasks: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        tasks[run["task"]].append(run)
    same: Rows = {}
    for task, some in tasks.items():
        lengths = sorted((key for key in some[0] if key.isdecimal()), key=int)
        rows, chance = rows_of(some, "scheme", lengths), 100 / {"two-pages": 3}.get(task, 4)
        text += [f"### `{task}` (chance: {chance:.1f})", ""]
        text += table(rows, {n: f"{n} pages" for n in lengths}, "")
        at_chance = [n for n, f in rows.items() if abs(fmean(f[lengths[0]].values()) - chance) < 3]
        text.append(f"- Within 3 points of chance: {_names(at_chance)}.")
        text.append(f"- 99 % or more: {reaching(rows, lengths[0], 99)}.")
        for n in lengths[1:]:
            text.append(f"- 99 % or more on {n} pages: {reaching(rows, n, 99)}.")
        text.append("")
        for name, values in rows.items():
            same.setdefault(name, {})[task] = values[lengths[0]]
    bars(same, list(tasks), plot, "accuracy, %")
    return [*text, f"![cross page]({plot.name})", ""]


def classification(runs: Runs, plot: Path) -> list[str]:
    columns = {"accuracy": "accuracy", "macro_f1": "macro-F1", "ece": "ECE", "mflops": "MFLOPs per document"}
    columns |= {"ms_per_document": "ms per document"}
    digits = {"ece": 3, "mflops": 0}
    by_table: dict[str, Rows] = {}
    for name in ("schemes", "scopes", "baselines"):
        by_table[name] = scaled([run for run in runs if run["table"] == name], "name", columns)
    strategies = [
        {**judged, "name": way, "seed": run["seed"]} for run in runs for way, judged in run["strategies"].items()
    ]
    by_table["strategies"] = scaled(strategies, "name", [name for name in columns if name != "mflops"])
    text = [
        "Short runs, all alike: they are for comparison and not the best that the model can do. Milliseconds are those "
        "of one core, pages already rendered. The strategies judge the models of `spatial+page`.",
        "",
    ]
    everything: Rows = {}
    for name, rows in by_table.items():
        if rows:
            shown = {key: value for key, value in columns.items() if name != "strategies" or key != "mflops"}
            text += [f"### {name.capitalize()}", "", *table(rows, shown, name, digits)]
        everything |= {PREFIX.get(name, "") + row: found for row, found in rows.items()}
    others = [name for name in everything if name not in (DEFAULT, "strategy document")]
    compared = [compare(everything, name, DEFAULT, "macro_f1", among=len(others)) for name in others]
    better = [name for name, (_, sign) in zip(others, compared, strict=True) if sign > 0]
    verdict = _names(better) if better else "nothing"
    text += ["Against the default (`spatial+page`, its own way to classify a document), macro-F1:", ""]
    text += [f"- {sentence}." for sentence in verdicts(others, [sentence for sentence, _ in compared])]
    text += ["", f"**Better than the default: {verdict}** over {len({run['seed'] for run in runs})} seeds.", ""]
    bars(everything, ["macro_f1"], plot, "macro-F1, %")
    return [*text, f"![classification]({plot.name})", ""]


def scaled(runs: Runs, row: str, columns: Iterable[str]) -> Rows:
    """Shares as per cent, all else as it is."""
    percent, plain = (rows_of(runs, row, names, scale=scale) for names, scale in _by_scale(columns))
    return {name: {**percent[name], **plain.get(name, {})} for name in percent}


def _by_scale(columns: Iterable[str]) -> list[tuple[list[str], float]]:
    shares = ("accuracy", "macro_f1")
    return [([n for n in columns if n in shares], 100.0), ([n for n in columns if n not in shares], 1.0)]


def _names(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def bars(rows: Rows, columns: Sequence[str], file: Path, label: str, *, chance: float | None = None) -> None:
    """One group of bars per row, one colour per column; points are single runs."""
    figure = Figure(figsize=(max(6.0, 0.75 * len(rows) + 1.5), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, width = figure.subplots(), 0.8 / len(columns)
    for c, column in enumerate(columns):
        x = [r + (c - (len(columns) - 1) / 2) * width for r in range(len(rows))]
        samples = [list(values.get(column, {}).values()) for values in rows.values()]
        heights = [fmean(sample) if sample else 0.0 for sample in samples]
        axes.bar(x, heights, 0.9 * width, label=column, color=f"C{c}", alpha=0.75)
        for centre, sample in zip(x, samples, strict=True):
            axes.plot([centre] * len(sample), sample, ".", color="black", markersize=3)
    if chance is not None:
        axes.axhline(chance, color="grey", linewidth=1, linestyle="--")
    axes.set_xticks(range(len(rows)), list(rows), rotation=35, ha="right")
    axes.set_ylabel(label)
    axes.set_ylim(0, 104)
    axes.spines[["top", "right"]].set_visible(False)
    if len(columns) > 1:
        axes.legend(frameon=False, ncols=len(columns), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(file, dpi=120)


SECTIONS = {
    "page_order": ("Are the pages in order? (real documents)", page_order),
    "cross_page": ("Synthetic documents whose class lies between pages", cross_page),
    "schemes": ("Classification: eight kinds of documents, sources left out", classification),
}


def gather(source: Path, target: Path) -> None:
    """Writes positions.md, positions.json and positions-*.png from whatever is there.

    A `note` beside the runs of a results.json stands under their command.
    """
    found = {}
    for name in SECTIONS:
        file = source / name / "results.json"
        if file.exists() and (results := json.loads(file.read_text()))["runs"]:
            found[name] = results
    if not found:
        raise SystemExit(f"{source} holds no results: run {'; '.join(COMMANDS.values())}")
    target.mkdir(parents=True, exist_ok=True)
    devices = {run["device"] for results in found.values() for run in results["runs"].values()}
    text = [
        "# Positional schemes, compared",
        "",
        "Means ± standard deviations over seeds, which are also over folds where documents are real. Each table stands "
        f"under the command that gives it. Measured on: {', '.join(sorted(devices))}. Gathered by "
        "`python examples/experiments/scheme_report.py runs examples/benchmarks/results`.",
        "",
    ]
    for name, results in found.items():
        title, section = SECTIONS[name]
        text += [f"## {title}", "", f"`{COMMANDS[name]}`", ""]
        if "note" in results:
            text += [results["note"], ""]
        text += section(list(results["runs"].values()), target / f"positions-{name.replace('_', '-')}.png")
    write(target / "positions.json", json.dumps({"commands": COMMANDS, **found}, indent=1))
    write(target / "positions.md", "\n".join(text).rstrip())


def write(file: Path, text: str) -> None:
    with replaced(file) as partial:
        partial.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    gather(arguments.source, arguments.target)


if __name__ == "__main__":
    main()
