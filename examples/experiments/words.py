"""What words bring, and where they belong: an ablation with whole groups left out.

    python examples/experiments/words.py DOCUMENTS.csv --group-by group --output runs/words_ablation

Rows: no words at all; words in class tokens alone, in patches alone, in both; the number of hash buckets; how many
words drop out singly, and how many documents lose all of theirs; from labels, from a text classifier's probabilities,
and from both. The text classifier is that of `examples/benchmarks/text_baseline.py`, and it speaks of training
documents by cross-validation within the training part: what it has learnt by heart teaches nothing. Every model is
judged with words and without, as it is on scans.

Models of rows that see documents alike are trained side by side, on the very same batches: what differs between them is
the row. Each learns what it would learn alone, as `docvit train --fold K/5` does it but for the clipping of gradients,
which would couple them, and the text classifier that a finished model gets.

Writes `results.json`, one entry per finished training, and `words.md`, a table of all rows whose folds are complete. A
second call goes on where the first was stopped, also within a training. Time to expect on an idle core: half an hour
for the ten models of the first training (16 epochs, 830 documents), a quarter of an hour for each of the other four.
`--fold 1 3` picks folds, `--rows` rows by parts of their names; `--model docvit_compact_patch32` has the blocks that
words in patches need.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from runs import open_results, parser, run_all, wanted
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from text_baseline import Corpus, predict

from docvit import DocViT
from docvit.data.dataset import DocumentBatch
from docvit.data.labels import LabelledDocuments, read_labelled, split_groups
from docvit.data.metrics import report
from docvit.documents.cache import PageCache, default_cache
from docvit.documents.patches import PatchSequence
from docvit.files import replaced
from docvit.model.config import DocViTConfig
from docvit.model.stems import InkStem
from docvit.model.variants import VARIANTS
from docvit.training.batches import labelled_batches
from docvit.training.distributed import Process
from docvit.training.ema import EMATeacher
from docvit.training.loop import CHECKPOINT, TrainSettings, fit
from docvit.training.recipe import Recipe, build_model
from docvit.training.supervised import classification_loss
from docvit.training.text import count_words
from kd.sweep import Sweep

CPU = Process(torch.device("cpu"))
INNER_FOLDS = 4
JUDGED = {"with words": True, "without": False}

Loss = Callable[[Any, DocumentBatch, float], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        buckets: `DocViTConfig.words`.
        without: the token that words do not reach, "pages" or "patches"; its map keeps the zeros it begins with.
        text: weight of the text classifier's probabilities against the labels, 0..1.
    """

    buckets: int = 2**14
    without: str | None = None
    text: float = 0.0


@dataclass(frozen=True)
class Training:
    """Rows that are trained side by side; `recipe` are fields of `Recipe` that differ."""

    rows: Mapping[str, Row]
    recipe: Mapping[str, Any] = field(default_factory=dict)


TRAININGS: dict[str, Training] = {
    "recipe": Training(
        {
            "no words": Row(buckets=0),
            "words in class tokens": Row(without="patches"),
            "words in patches": Row(without="pages"),
            "words in both": Row(),
            **{f"2^{power} buckets": Row(buckets=2**power) for power in (12, 13, 15, 16)},
            "from a text teacher": Row(text=1.0),
            "from labels and a text teacher": Row(text=0.5),
        }
    ),
    **{
        name: Training({name: Row()}, changed)
        for name, changed in {
            **{f"word dropout {share}": {"word_dropout": share} for share in (0.0, 0.3)},
            **{f"lose words {share}": {"lose_words": share} for share in (0.0, 0.5)},
        }.items()
    },
}


class Rows(Sweep):
    """The models of rows, by their names."""

    def no_weight_decay(self) -> set[str]:
        models = cast(Iterable[DocViT], self.networks)
        return {f"networks.{i}.{name}" for i, model in enumerate(models) for name in model.no_weight_decay()}


class SharedObservation:
    """What an ink stem measures of a batch before anything is learned: of the same pixels the same for all models."""

    def __init__(self, stem: InkStem) -> None:
        self.observe = stem.observe
        self.patches: Tensor | None = None

    def __call__(self, batch: PatchSequence, page_lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.patches is not batch.patches:
            self.patches, self.found = batch.patches, self.observe(batch, page_lengths)
        return self.found


def run(
    training: Training,
    seed: int,
    fold: int,
    folds: int,
    data: LabelledDocuments,
    cache: PageCache,
    recipe: Recipe,
    output: Path,
) -> dict[str, Any]:
    """Trains the models of one training and judges them on the groups left out."""
    recipe = replace(recipe, train=replace(recipe.train, seed=seed), **training.recipe)
    learnt, held_out = split_groups(data, fold, folds)
    files, _ = cache.prepare(data.paths, workers=0)
    taught = any(row.text for row in training.rows.values())
    soft = torch.from_numpy(text_targets(Corpus(learnt, cache, files))).float() if taught else None
    models, seconds = train(learnt, files, recipe, training.rows, soft, output)
    judged: dict[str, dict[str, Any]] = {}
    for name, row in training.rows.items():
        judged[name] = {}
        for how, words in JUDGED.items():
            scores = predict(cast(DocViT, models[name]), held_out, files, words=words and bool(row.buckets))
            judged[name][how] = scores.round(6).tolist()
    return {"seed": seed, "fold": fold, "seconds": seconds, "labels": list(held_out.labels), "judged": judged}


def text_targets(corpus: Corpus) -> np.ndarray:
    """(documents, C) probabilities of each document by text classifiers that were not trained on its group."""
    targets = np.zeros((len(corpus.data), len(corpus.data.classes)))
    position = {path: i for i, path in enumerate(corpus.data.paths)}
    for fold in range(INNER_FOLDS):
        train, test = (
            np.array([position[path] for path in part.paths]) for part in split_groups(corpus.data, fold, INNER_FOLDS)
        )
        targets[test] = corpus.logistic_regression(train, test)
    return targets


def train(
    data: LabelledDocuments,
    files: Mapping[str, Path],
    recipe: Recipe,
    rows: Mapping[str, Row],
    soft: Tensor | None,
    output: Path,
) -> tuple[Rows, float]:
    """As `docvit.train_documents`; gives the moving averages and the seconds that training took."""
    models = Rows({name: build_row(row, recipe, data, files) for name, row in rows.items()})
    stems = [cast(DocViT, model).patch_embed for model in models.networks]
    if isinstance(stems[0], InkStem):
        shared = SharedObservation(stems[0])
        for stem in stems:
            stem.observe = shared
    seeing = max(rows.values(), key=lambda row: row.buckets).buckets  # whatever their number, batches have the words
    config = build_model(replace(recipe, settings={**recipe.settings, "words": seeing}), data.classes).config
    ema = EMATeacher(models, decay=recipe.ema)
    history = fit(
        models,
        labelled_batches(data, files, config, recipe, CPU),
        side_by_side({name: row_loss(row, recipe, soft) for name, row in rows.items()}),
        recipe.train,
        output=output,
        ema=ema,
        resume=(output / CHECKPOINT).exists(),
    )
    ema.copy_to(models)
    return models.eval(), sum(record["seconds"] for record in history)


def build_row(row: Row, recipe: Recipe, data: LabelledDocuments, files: Mapping[str, Path]) -> DocViT:
    model = build_model(replace(recipe, settings={**recipe.settings, "words": row.buckets}), data.classes)
    if model.words is not None:
        count_words(model, [files[path] for path in data.paths])
        blocked = {"pages": model.words.to_pages, "patches": model.words.to_patches, None: None}[row.without]
        if blocked is not None:
            blocked.requires_grad_(False)
    return model


def row_loss(row: Row, recipe: Recipe, soft: Tensor | None) -> Loss:
    if not row.text:
        return classification_loss(recipe)
    assert soft is not None
    return text_distillation_loss(recipe, soft, row.text)


def side_by_side(losses: Mapping[str, Loss]) -> Loss:
    """The sum of the losses of all rows: each model gets the gradient that it would get alone."""

    def loss(models: Rows, batch: DocumentBatch, progress: float) -> Mapping[str, Tensor]:
        parts = {name: one(models[name], batch, progress)["loss"] for name, one in losses.items()}
        return {
            "loss": torch.stack(list(parts.values())).sum(),
            **{f"{name}/loss": part for name, part in parts.items()},
        }

    return loss


def text_distillation_loss(recipe: Recipe, soft: Tensor, weight: float) -> Loss:
    """(1 - weight) * the loss of the labels + weight * KL(text || model) of documents and of their pages."""
    of_labels = classification_loss(recipe)

    def loss(model: DocViT, batch: DocumentBatch, progress: float) -> Mapping[str, Tensor]:
        features = model.forward_features(batch.sequence)
        targets = soft[batch.index.cpu()].to(batch.labels.device)
        soft_loss = _kl(model.forward_head(features), targets)
        if recipe.page_loss:
            pages = model.forward_pages(features)
            soft_loss = soft_loss + recipe.page_loss * _kl(pages, targets[features.document_of_page])
        if weight == 1:
            return {"loss": soft_loss}
        labels = of_labels(model, batch, progress)["loss"]
        return {"loss": (1 - weight) * labels + weight * soft_loss, "label_loss": labels, "text_loss": soft_loss}

    return loss


def _kl(logits: Tensor, targets: Tensor) -> Tensor:
    return F.kl_div(logits.float().log_softmax(1), targets, reduction="batchmean")


def judge(
    runs: Mapping[str, Mapping[str, Any]], classes: tuple[str, ...], folds: Collection[int]
) -> dict[str, dict[str, Any]]:
    """row -> how it was judged -> metric -> one value per seed, of rows that have all these folds of a seed."""
    by_row: dict[str, dict[int, list[Mapping[str, Any]]]] = {}
    for found in (found for found in runs.values() if found["fold"] in folds):
        for row, scores in found["judged"].items():
            by_row.setdefault(row, {}).setdefault(found["seed"], []).append({"labels": found["labels"], **scores})
    tables: dict[str, dict[str, Any]] = {}
    for row, seeds in by_row.items():
        complete = [judged for _, judged in sorted(seeds.items()) if len(judged) == len(folds)]
        if complete:
            tables[row] = {how: _metrics(complete, how, classes) for how in JUDGED}
    return {row: tables[row] for training in TRAININGS.values() for row in training.rows if row in tables}


def _metrics(seeds: list[list[Mapping[str, Any]]], how: str, classes: tuple[str, ...]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"macro_f1": [], "accuracy": [], "log_loss": []}
    for folds in seeds:
        scores = np.concatenate([np.array(fold[how]) for fold in folds])
        labels = np.concatenate([np.array(fold["labels"]) for fold in folds])
        metrics = report(scores, labels.tolist(), classes)
        found["macro_f1"].append(100 * metrics.macro_f1)
        found["accuracy"].append(100 * metrics.accuracy)
        found["log_loss"].append(float(-np.log(scores[np.arange(len(labels)), labels].clip(1e-7)).mean()))
    return found


def markdown(tables: Mapping[str, Mapping[str, Any]]) -> str:
    heads = [f"{metric} {how}" for how in JUDGED for metric in ("macro-F1", "accuracy", "log loss")]
    lines = [f"| | {' | '.join(heads)} | seeds |", "|---" * (len(heads) + 2) + "|"]
    for row, judged in tables.items():
        cells = [_cell(v, 2 if m == "log_loss" else 1) for how in JUDGED for m, v in judged[how].items()]
        lines.append(f"| {row} | {' | '.join(cells)} | {len(judged['without']['macro_f1'])} |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], digits: int) -> str:
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def settings_of(
    data: LabelledDocuments, recipe: Recipe, folds: int, trainings: Mapping[str, Training]
) -> Mapping[str, Any]:
    about = json.dumps([[Path(path).name for path in data.paths], data.labels, data.classes, data.groups])
    facts = {"documents": len(data), "data": hashlib.sha256(about.encode()).hexdigest(), "folds": folds}
    rows = [row for training in trainings.values() for row in training.rows]
    return {"experiment": "words", **facts, "rows": rows, "recipe": asdict(recipe)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--group-by", default="group")
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--fold", type=int, nargs="+", help="only these, counted from 1 (default: all)")
    options.add_argument("--rows", nargs="+", help="rows whose names contain one of these (default: all)")
    options.add_argument("--epochs", type=int, default=16)
    options.add_argument("--model", default="docvit_linear_patch32")
    options.add_argument("--page-size", type=int, default=256)
    options.add_argument("--cache", type=Path, help="folder of rendered pages and words")
    arguments = options.parse_args()
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    settings = {"page_size": arguments.page_size}
    learning = TrainSettings(epochs=arguments.epochs, clip=None)
    recipe = Recipe(model=arguments.model, settings=settings, train=learning)
    rendering = DocViTConfig.from_dict({**VARIANTS[arguments.model], **settings}).rendering
    cache = PageCache(arguments.cache or default_cache(), rendering, words=True)
    trainings = chosen_rows(arguments.rows)
    results = open_results(arguments.output, settings_of(data, recipe, arguments.folds, trainings))
    if errors := cache.prepare(data.paths, workers=arguments.jobs)[1]:
        raise SystemExit("\n".join(map(str, errors)))
    chosen = sorted({fold - 1 for fold in arguments.fold or range(1, arguments.folds + 1)})
    if not set(chosen) <= set(range(arguments.folds)):
        options.error(f"--fold: from 1 to {arguments.folds}")
    tasks = {}
    for seed in range(arguments.seeds):
        for name, training in trainings.items():
            for fold in chosen:
                task = f"{name}, seed {seed}, fold {fold + 1}"
                folder = arguments.output / "models" / task.replace(" ", "_").replace(",", "")
                tasks[task] = (training, seed, fold, arguments.folds, data, cache, recipe, folder)
    run_all(results, tasks, run, arguments)
    table = markdown(judge(results.runs, data.classes, chosen))
    with replaced(arguments.output / "words.md") as partial:
        partial.write_text(table)
    print(table)


def chosen_rows(parts: Collection[str] | None) -> dict[str, Training]:
    """The trainings with those of their rows whose names contain one of `parts`; without any they are left out."""
    found = {}
    for name, training in TRAININGS.items():
        rows = {row: value for row, value in training.rows.items() if wanted(row, parts)}
        if rows:
            found[name] = replace(training, rows=rows)
    return found


if __name__ == "__main__":
    main()
