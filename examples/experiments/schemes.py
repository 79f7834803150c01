"""Eight kinds of documents, sources left out: positional schemes, scopes, baselines and the seven strategies.

    python examples/experiments/schemes.py DOCUMENTS.csv --output runs/schemes

DOCUMENTS.csv has the columns path, label and source_repo. Seed S leaves out fold S of scikit-learn's
StratifiedGroupKFold(5), so that five seeds leave out every source once. All runs train the compact variant alike and
shortly: too short for its best accuracy, long enough to compare. The strategies judge the models of the scheme
`spatial+page`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import open_results, parser, run_all

from docvit import DocumentClassifier, train_documents
from docvit.data.labels import LabelledDocuments, read_labelled, split_groups
from docvit.data.metrics import report
from docvit.documents.cache import CachedDocument
from docvit.documents.pages import PageStack
from docvit.evaluation.cost import predict_cost
from docvit.inference.strategies import STRATEGIES
from docvit.model.config import POSITIONS
from docvit.model.variants import BASELINES, with_baseline
from docvit.training.distributed import Process
from docvit.training.loop import CHECKPOINT, TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all

DEFAULT = {"positions": "spatial+page", "scopes": "page-then-document:2"}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "schemes": {name: {**DEFAULT, "positions": name} for name in POSITIONS},
    "scopes": {scopes: {**DEFAULT, "scopes": scopes} for scopes in ("page", "alternate:2", "document")},
    "baselines": {name: with_baseline(name, {}) for name in BASELINES},
}
METRICS = ("accuracy", "macro_f1", "ece", "aurc")
BATCH = 8  # documents judged at once
CPU = Process(torch.device("cpu"))


def run(
    table: str, name: str, seed: int, data: LabelledDocuments, output: Path, recipe: Recipe, folds: int
) -> dict[str, Any]:
    """Trains one model on all sources but those of fold `seed`, and judges it on those."""
    training, held_out = split_groups(data, seed % folds, folds)
    seeded = replace(
        recipe, settings={**recipe.settings, **TABLES[table][name]}, train=replace(recipe.train, seed=seed)
    )
    resume = (output / CHECKPOINT).exists()
    model, history = train_documents(training, output, seeded, resume=resume, device="cpu", workers=1)
    classifier = DocumentClassifier(model, device="cpu")
    documents = rendered(held_out, classifier)
    metrics = judge(classifier, documents, held_out)
    strategies = {}
    if table == "schemes" and name == DEFAULT["positions"]:
        strategies = {way: judge(classifier, documents, held_out, strategy=way) for way in STRATEGIES}
    seconds = sum(record["seconds"] for record in history)
    about = {"table": table, "name": name, "seed": seed, "fold": seed % folds, "documents": len(held_out)}
    return {**about, "seconds": seconds, **metrics, "mflops": mflops(classifier, documents), "strategies": strategies}


def rendered(data: LabelledDocuments, classifier: DocumentClassifier) -> list[PageStack]:
    """All pages of all documents."""
    files = render_all(data.paths, classifier.model.config.rendering, CPU, workers=1)
    documents = [CachedDocument.open(files[path]) for path in data.paths]
    return [document.load(document.indices) for document in documents]


def judge(
    classifier: DocumentClassifier,
    documents: Sequence[PageStack],
    data: LabelledDocuments,
    *,
    strategy: str = "document",
) -> dict[str, float]:
    """Accuracy, macro-F1, calibration, and milliseconds per document on one core, pages already rendered."""
    begun = time.process_time()
    rows = [row for batch in batched(documents) for row in classifier.classify_pages(batch, strategy=strategy)]
    milliseconds = 1000 * (time.process_time() - begun) / len(documents)
    scores = np.array([[row.scores[name] for name in data.classes] for row in rows])
    found = report(scores, data.labels, data.classes).as_dict()
    return {**{name: found[name] for name in METRICS}, "ms_per_document": milliseconds}


def mflops(classifier: DocumentClassifier, documents: Sequence[PageStack]) -> float:
    """MFLOPs of a forward pass, mean over documents."""
    config = classifier.model.config
    return sum(predict_cost(config, classifier.model.pack([d])).flops for d in documents) / len(documents) / 1e6


def batched(documents: Sequence[PageStack]) -> Iterator[list[PageStack]]:
    for start in range(0, len(documents), BATCH):
        yield list(documents[start : start + BATCH])


def settings_of(data: LabelledDocuments, recipe: Recipe, folds: int) -> Mapping[str, Any]:
    digest = hashlib.sha256("\n".join(Path(p).name for p in data.paths).encode()).hexdigest()
    about = {"documents": len(data), "sources": len(set(data.groups or ())), "names": digest}
    return {"experiment": "schemes", "data": about, "folds": folds, "recipe": asdict(recipe), "tables": TABLES}


def main() -> None:
    options = parser(__doc__, seeds=5)  # one for each fold
    options.add_argument("data", type=Path)
    options.add_argument("--group-by", default="source_repo")
    options.add_argument("--folds", type=int, default=5)
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--page-size", type=int, default=256)
    arguments = options.parse_args()
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    loop = TrainSettings(epochs=arguments.epochs, bf16=False)  # every batch has shapes of its own: no kernels for each
    recipe = Recipe(settings={"page_size": arguments.page_size}, train=loop, budget=600, ema=0.99, mix_pages=0.0)
    results = open_results(arguments.output, settings_of(data, recipe, arguments.folds))
    render_all(data.paths, build_model(recipe, data.classes).config.rendering, CPU, workers=arguments.jobs)
    tasks = {}
    for seed in range(arguments.seeds):
        for table, names in TABLES.items():
            for name in names:
                output = arguments.output / "models" / f"{table}_{name}_seed_{seed}".replace(":", "_")
                tasks[f"{table} {name} seed {seed}"] = (table, name, seed, data, output, recipe, arguments.folds)
    run_all(results, tasks, run, arguments)


if __name__ == "__main__":
    main()
