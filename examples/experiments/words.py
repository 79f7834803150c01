"""What words bring, and where they belong: an ablation with whole groups left out.

    python examples/experiments/words.py DOCUMENTS.csv --group-by group --output runs/words_ablation

One model per row, fold and seed, trained as `docvit train --fold K/5` does: no words at all; words in class tokens
alone, in patches alone, in both; the number of hash buckets; how many words drop out singly, and how many documents
lose all of theirs; from labels, from a text classifier's probabilities, and from both. The text classifier is that of
`examples/benchmarks/text_baseline.py`, and it speaks of training documents by cross-validation within the training
part: what it has learnt by heart teaches nothing. Every model is judged with words and without, as it is on scans.

Writes `results.json`, one entry per finished model, and `words.md`, a table of all rows whose folds are complete. A
second call goes on where the first was stopped, also within a model's training. Time to expect: a quarter of an hour
per model (16 epochs, 830 documents, one idle core), so 14 rows of 5 folds take 18 hours per seed, 9 on two cores.
`--only` picks rows by name, `--fold 1 3` folds; the table then has these folds alone.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from runs import open_results, parser, run_all
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from text_baseline import Corpus, predict

from docvit import DocViT
from docvit.data.dataset import DocumentBatch
from docvit.data.labels import LabelledDocuments, read_labelled, split_groups
from docvit.data.metrics import report
from docvit.documents.cache import PageCache, default_cache
from docvit.files import replaced
from docvit.model.config import DocViTConfig
from docvit.model.variants import VARIANTS
from docvit.training.batches import labelled_batches
from docvit.training.distributed import Process
from docvit.training.ema import EMATeacher
from docvit.training.loop import CHECKPOINT, TrainSettings, fit
from docvit.training.recipe import Recipe, build_model
from docvit.training.supervised import classification_loss
from docvit.training.text import count_words

CPU = Process(torch.device("cpu"))
INNER_FOLDS = 4
JUDGED = {"with words": True, "without": False}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        buckets: `DocViTConfig.words`.
        without: the token that words do not reach, "pages" or "patches"; its map keeps the zeros it begins with.
        recipe: fields of `Recipe` that differ.
        text: weight of the text classifier's probabilities against the labels, 0..1.
    """

    buckets: int = 2**14
    without: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    text: float = 0.0


ROWS: dict[str, Row] = {
    "no words": Row(buckets=0),
    "words in class tokens": Row(without="patches"),
    "words in patches": Row(without="pages"),
    "words in both": Row(),
    **{f"2^{power} buckets": Row(buckets=2**power) for power in (12, 13, 15, 16)},
    **{f"word dropout {share}": Row(recipe={"word_dropout": share}) for share in (0.0, 0.3)},
    **{f"lose words {share}": Row(recipe={"lose_words": share}) for share in (0.0, 0.5)},
    "from a text teacher": Row(text=1.0),
    "from labels and a text teacher": Row(text=0.5),
}


def run(
    name: str, seed: int, fold: int, folds: int, data: LabelledDocuments, cache: PageCache, recipe: Recipe, output: Path
) -> dict[str, Any]:
    """Trains one model and judges it on the groups left out."""
    row, settings = ROWS[name], {**recipe.settings, "words": ROWS[name].buckets}
    recipe = replace(recipe, settings=settings, train=replace(recipe.train, seed=seed), **row.recipe)
    training, held_out = split_groups(data, fold, folds)
    files, _ = cache.prepare(data.paths, workers=0)
    soft = torch.from_numpy(text_targets(Corpus(training, cache, files))).float() if row.text else None
    model, seconds = train(training, files, recipe, row, soft, output)
    found = {}
    for how, words in JUDGED.items():
        scores = predict(model, held_out, files, words=words and bool(row.buckets))
        found[how] = {"labels": list(held_out.labels), "probabilities": scores.round(6).tolist()}
    return {"row": name, "seed": seed, "fold": fold, "seconds": seconds, "judged": found}


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
    row: Row,
    soft: Tensor | None,
    output: Path,
) -> tuple[DocViT, float]:
    """As `docvit.train_documents`; gives the moving average and the seconds that training took."""
    model = build_model(recipe, data.classes)
    if model.words is not None:
        count_words(model, [files[path] for path in data.paths])
        if row.without is not None:
            blocked = model.words.to_pages if row.without == "pages" else model.words.to_patches
            assert blocked is not None
            blocked.requires_grad_(False)
    ema = EMATeacher(model, decay=recipe.ema)
    history = fit(
        model,
        labelled_batches(data, files, model.config, recipe, CPU),
        classification_loss(recipe) if soft is None else text_distillation_loss(recipe, soft, row.text),
        recipe.train,
        output=output,
        ema=ema,
        resume=(output / CHECKPOINT).exists(),
    )
    ema.copy_to(model)
    return model.eval(), sum(record["seconds"] for record in history)


def text_distillation_loss(
    recipe: Recipe, soft: Tensor, weight: float
) -> Callable[[DocViT, DocumentBatch, float], Mapping[str, Tensor]]:
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
        by_row.setdefault(found["row"], {}).setdefault(found["seed"], []).append(found["judged"])
    tables: dict[str, dict[str, Any]] = {}
    for row, seeds in by_row.items():
        complete = [judged for _, judged in sorted(seeds.items()) if len(judged) == len(folds)]
        if complete:
            tables[row] = {
                how: _metrics([[fold[how] for fold in seed] for seed in complete], classes) for how in JUDGED
            }
    return {name: tables[name] for name in ROWS if name in tables}


def _metrics(seeds: list[list[Mapping[str, Any]]], classes: tuple[str, ...]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"macro_f1": [], "accuracy": [], "log_loss": []}
    for folds in seeds:
        scores = np.concatenate([np.array(fold["probabilities"]) for fold in folds])
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


def settings_of(data: LabelledDocuments, recipe: Recipe, folds: int) -> Mapping[str, Any]:
    about = json.dumps([[Path(path).name for path in data.paths], data.labels, data.classes, data.groups])
    digest = hashlib.sha256(about.encode()).hexdigest()
    return {"experiment": "words", "documents": len(data), "data": digest, "folds": folds, "recipe": asdict(recipe)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("data", type=Path)
    options.add_argument("--group-by", default="group")
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--fold", type=int, nargs="+", help="only these, counted from 1 (default: all)")
    options.add_argument("--epochs", type=int, default=16)
    options.add_argument("--model", default="docvit_compact_patch32")
    options.add_argument("--page-size", type=int, default=256)
    options.add_argument("--cache", type=Path, help="folder of rendered pages and words")
    arguments = options.parse_args()
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    settings = {"page_size": arguments.page_size}
    recipe = Recipe(model=arguments.model, settings=settings, train=TrainSettings(epochs=arguments.epochs))
    rendering = DocViTConfig.from_dict({**VARIANTS[arguments.model], **settings}).rendering
    cache = PageCache(arguments.cache or default_cache(), rendering, words=True)
    results = open_results(arguments.output, settings_of(data, recipe, arguments.folds))
    if errors := cache.prepare(data.paths, workers=arguments.jobs)[1]:
        raise SystemExit("\n".join(map(str, errors)))
    chosen = sorted({fold - 1 for fold in arguments.fold or range(1, arguments.folds + 1)})
    if not set(chosen) <= set(range(arguments.folds)):
        options.error(f"--fold: from 1 to {arguments.folds}")
    tasks = {}
    for seed in range(arguments.seeds):
        for name in ROWS:
            for fold in chosen:
                task = f"{name}, seed {seed}, fold {fold + 1}"
                folder = arguments.output / "models" / task.replace(" ", "_").replace(",", "")
                tasks[task] = (name, seed, fold, arguments.folds, data, cache, recipe, folder)
    run_all(results, tasks, run, arguments)
    table = markdown(judge(results.runs, data.classes, chosen))
    with replaced(arguments.output / "words.md") as partial:
        partial.write_text(table)
    print(table)


if __name__ == "__main__":
    main()
