"""Text classifiers, trained models and their late fusion on the same documents, whole groups left out.

    python examples/benchmarks/text_baseline.py DOCUMENTS.csv --group-by group --models runs/words --seeds 3 \\
        --output results/words/text_baseline.json

The text classifiers are TF-IDF of characters (2 to 5, within words, sublinear) with logistic regression (C = 30,
classes balanced), and scikit-learn's MLP on counts of words and pairs of words (min_df = .01, tol = .01), which is what
paperless-ngx does, here without its stemming. The words are those that the library reads on the first 64 pages (spread
evenly over a longer document). Folds are those of `docvit train --fold K/5`.

`--models DIR` judges the models of these folds on the same held-out documents: with words, without them, and added to
the TF-IDF classifier's log probabilities (half and half, and .3 of the text). A folder's name says its fold and, if
there are several, its seed: `fold-1` to `fold-5`, `seed-0/fold-1`, or counted from zero without the hyphen,
`words-seed0-fold0`. What stands before is a name; models of one name are one row. A model that has not yet trained all
its epochs is passed over, and all rows are judged on those folds that all of them have.

Probabilities are kept per row and fold in `--probabilities`; what is there is not computed again. Beside other work
set OMP_NUM_THREADS=1. Time to expect for 1,033 documents on one busy core: a minute to count n-grams once, then a
quarter of a minute per fold for the regression, and as much for each fold and seed of the MLP.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import platform
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from tqdm import tqdm

from docvit import DocViT
from docvit.data.dataset import DocumentDataset, view_of
from docvit.data.labels import LabelledDocuments, read_labelled, split_groups
from docvit.data.loader import DocumentLoader
from docvit.data.metrics import report
from docvit.documents.cache import CachedDocument, PageCache, default_cache
from docvit.errors import UserError
from docvit.files import replaced
from docvit.model.config import DocViTConfig
from docvit.model.folder import CONFIG, WEIGHTS
from docvit.model.variants import VARIANTS

TEXT, MLP = "TF-IDF of characters, logistic regression", "word counts, MLP"
FUSIONS = {"half and half": 0.5, ".3 text": 0.3}  # the text classifier's share
METRICS = ("macro_f1", "accuracy", "ece", "log_loss")
FOLDER = re.compile(r"(?:(?P<name>.*?)[-/])??(?:seed-?(?P<seed>\d+)[-/])?fold(?P<hyphen>-?)(?P<fold>\d+)$")

Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]  # training and held-out indices -> probabilities


@dataclass(frozen=True)
class Counts:
    """How often each term occurs in each document, terms of a single document left out."""

    matrix: sparse.csr_matrix  # (documents, terms)

    def of_frequent(self, train: np.ndarray, share: float) -> sparse.csr_matrix:
        """The terms that occur in at least two training documents and in this share of them."""
        frequency = np.bincount(self.matrix[train].indices, minlength=self.matrix.shape[1])
        return self.matrix[:, frequency >= max(2, share * len(train))]


@dataclass(frozen=True)
class Corpus:
    """Labelled documents with their rendered pages and words."""

    data: LabelledDocuments
    cache: PageCache
    files: Mapping[str, Path]

    @cached_property
    def texts(self) -> list[str]:
        documents = [CachedDocument.open(self.files[path]) for path in self.data.paths]
        return [" ".join(word for i in d.indices for word in d.load_words(i).texts) for d in documents]

    @cached_property
    def labels(self) -> np.ndarray:
        return np.array(self.data.labels)

    @cached_property
    def characters(self) -> Counts:
        return self._count(analyzer="char_wb", ngram_range=(2, 5), min_df=2, dtype=np.float32)

    @cached_property
    def words(self) -> Counts:
        return self._count(analyzer="word", ngram_range=(1, 2), min_df=max(2, len(self.data) // 200), dtype=np.float32)

    def _count(self, **settings: Any) -> Counts:
        return Counts(CountVectorizer(**settings).fit_transform(self.texts))

    def logistic_regression(self, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        counts = self.characters.of_frequent(train, 0)
        weighting = TfidfTransformer(sublinear_tf=True).fit(counts[train])
        features, held_out = _in_span(weighting.transform(counts[train]), weighting.transform(counts[test]))
        model = LogisticRegression(C=30, class_weight="balanced", max_iter=1000)
        return self._probabilities(model.fit(features, self.labels[train]), held_out)

    def mlp(self, seed: int) -> Fit:
        def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            counts = self.words.of_frequent(train, 0.01)
            model = MLPClassifier(tol=0.01, random_state=seed).fit(counts[train], self.labels[train])
            return self._probabilities(model, counts[test])

        return fit

    def _probabilities(self, model: Any, features: Any) -> np.ndarray:
        """(documents, C): 0 for classes that no training document is of."""
        probabilities = np.zeros((features.shape[0], len(self.data.classes)))
        probabilities[:, model.classes_] = model.predict_proba(features)
        return probabilities

    def model(self, folder: Path, *, words: bool) -> Fit:
        """A trained model's probabilities of whole documents, with their words or as pixels alone."""

        def fit(train: np.ndarray, test: np.ndarray) -> np.ndarray:
            model, held_out, files = DocViT.from_pretrained(str(folder)), self.data.subset(test.tolist()), self.files
            if model.config.rendering != self.cache.rendering:
                files, _ = replace(self.cache, rendering=model.config.rendering).prepare(held_out.paths)
            order = [model.config.classes.index(name) for name in self.data.classes]
            return predict(model, held_out, files, words=words)[:, order]

        return fit

    @cached_property
    def digest(self) -> str:
        """Of all that a row's probabilities depend on beside its name."""
        about = [[file.name for file in map(self.files.get, self.data.paths) if file], self.data.labels]
        return hashlib.sha256(json.dumps([*about, self.data.classes, self.data.groups]).encode()).hexdigest()


@torch.inference_mode()
def predict(model: DocViT, data: LabelledDocuments, files: Mapping[str, Path], *, words: bool) -> np.ndarray:
    """(documents, C) probabilities of whole documents, with their words or as pixels alone."""
    view = replace(view_of(model.config), words=words)
    dataset = DocumentDataset([files[path] for path in data.paths], data.labels, view)
    probabilities = np.zeros((len(data), model.num_classes))
    for batch in DocumentLoader(dataset, budget=6000):
        probabilities[batch.index.numpy()] = model.eval()(batch.sequence).float().softmax(1).numpy()
    return probabilities


def _in_span(train: sparse.csr_matrix, test: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The same inner products in as many features as there are training documents.

    The weights of a regularised linear model are a combination of its training documents, so nothing changes but the
    time: hundreds of features instead of a million.
    """
    values, vectors = np.linalg.eigh((train @ train.T).toarray().astype(np.float64))
    kept = values > 1e-9 * values.max()
    basis = vectors[:, kept] / np.sqrt(values[kept])
    return vectors[:, kept] * np.sqrt(values[kept]), (test @ train.T).toarray() @ basis


@dataclass(frozen=True)
class Row:
    """One line of the table: probabilities by (seed, fold), computed when they are asked for."""

    name: str
    fits: Mapping[tuple[int, int], tuple[Fit, str]]  # and what tells them from others of the same name, seed and fold


@dataclass(frozen=True)
class Kept:
    """Probabilities on disk, so that a second run goes on where the first was stopped."""

    folder: Path
    corpus: Corpus
    folds: int

    def get(self, row: Row, seed: int, fold: int) -> np.ndarray:
        fit, digest = row.fits[seed, fold]
        of = f"{self.corpus.digest} {self.folds} {digest}"
        name = re.sub(r"\W+", "-", f"{row.name}-seed{seed}-fold{fold + 1}")
        file = self.folder / f"{name}.npz"
        if file.exists():
            with np.load(file) as found:
                if str(found["of"]) == of:
                    return found["probabilities"]
        start = time.perf_counter()
        probabilities = fit(*self.indices(fold))
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced(file) as partial, partial.open("wb") as stream:
            np.savez(stream, probabilities=probabilities, of=of, seconds=time.perf_counter() - start)
        tqdm.write(f"{name}: {time.perf_counter() - start:.0f} s")
        return probabilities

    def indices(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        position = {path: i for i, path in enumerate(self.corpus.data.paths)}
        parts = split_groups(self.corpus.data, fold, self.folds)
        train, held_out = (np.array([position[path] for path in part.paths]) for part in parts)
        return train, held_out


def find_models(folder: Path, folds: int) -> dict[str, dict[tuple[int, int], Path]]:
    """name -> (seed, fold from zero) -> model folder, for all models in `folder` that have trained to their end."""
    found: dict[str, dict[tuple[int, int], Path]] = defaultdict(dict)
    for config in sorted(folder.rglob(CONFIG)):
        match = FOLDER.fullmatch(config.parent.relative_to(folder).as_posix())
        if match and is_finished(config.parent):
            fold = int(match["fold"]) - bool(match["hyphen"])
            if not 0 <= fold < folds:
                raise SystemExit(f"{config.parent} is no model of one of {folds} folds")
            found[match["name"] or "model"][int(match["seed"] or 0), fold] = config.parent
    if not found:
        raise SystemExit(f"{folder} has no finished models: folders such as fold-1, as `docvit train` writes them")
    return dict(found)


def is_finished(folder: Path) -> bool:
    """Whether the last epoch of its recipe has been trained."""
    recipe, metrics = folder / "recipe.json", folder / "metrics.csv"
    if not recipe.exists() or not metrics.exists():
        return False
    with metrics.open(newline="") as rows:
        return len(list(csv.DictReader(rows))) >= json.loads(recipe.read_text())["train"]["epochs"]


def rows_of(corpus: Corpus, models: Path | None, folds: int, seeds: int) -> Iterator[Row]:
    yield Row(TEXT, {(0, fold): (corpus.logistic_regression, "") for fold in range(folds)})
    yield Row(MLP, {(seed, fold): (corpus.mlp(seed), "") for seed in range(seeds) for fold in range(folds)})
    for name, folders in (find_models(models, folds) if models else {}).items():
        weights = {key: hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest() for key, folder in folders.items()}
        reads = [bool(json.loads((folder / CONFIG).read_text()).get("words")) for folder in folders.values()]
        for words in (True, False) if any(reads) else (False,):
            fits = {key: (corpus.model(folder, words=words), weights[key]) for key, folder in folders.items()}
            yield Row(f"{name}, with words" if words else f"{name}, pixels", fits)


def fuse(text: np.ndarray, model: np.ndarray, share: float) -> np.ndarray:
    """Log probabilities (documents, C) added, `share` of the text's, and normalised."""
    logits = share * np.log(text.clip(1e-12)) + (1 - share) * np.log(model.clip(1e-12))
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def judge(probabilities: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, Any]:
    metrics = report(probabilities, labels.tolist(), classes)
    log_loss = float(-np.log(probabilities[np.arange(len(labels)), labels].clip(1e-12)).mean())
    per_class = {name: values["f1"] for name, values in metrics.per_class.items()}
    found = {"macro_f1": metrics.macro_f1, "accuracy": metrics.accuracy, "ece": metrics.ece, "log_loss": log_loss}
    return {**found, "f1": per_class}


def summarise(runs: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the mean F1 of every class."""
    values = {metric: [run[metric] for run in runs.values()] for metric in METRICS}
    spread = {
        m: {"mean": statistics.mean(v), "std": statistics.stdev(v) if len(v) > 1 else None} for m, v in values.items()
    }
    f1 = {name: statistics.mean(run["f1"][name] for run in runs.values()) for name in next(iter(runs.values()))["f1"]}
    return {"seeds": sorted(runs), **spread, "f1": f1}


def compare(corpus: Corpus, rows: list[Row], kept: Kept) -> tuple[list[int], dict[str, Any]]:
    """The folds that all rows have, and each row judged on them, the fusions of models and text among them."""
    folds = sorted(set.intersection(*({fold for _, fold in row.fits} for row in rows)))
    tests = {fold: kept.indices(fold)[1] for fold in folds}
    labels = np.concatenate([corpus.labels[tests[fold]] for fold in folds])
    pooled: dict[str, dict[int, np.ndarray]] = {}
    for row in tqdm(rows, unit="row", disable=None):
        seeds = sorted({s for s, _ in row.fits if all((s, fold) in row.fits for fold in folds)})
        pooled[row.name] = {s: np.concatenate([kept.get(row, s, fold) for fold in folds]) for s in seeds}
    (text,) = pooled[TEXT].values()
    for row in rows:
        for name, share in FUSIONS.items() if row.name not in (TEXT, MLP) else ():
            fused = {seed: fuse(text, probabilities, share) for seed, probabilities in pooled[row.name].items()}
            pooled[f"{row.name}, and TF-IDF ({name})"] = fused
    judged = {
        name: {s: judge(p, labels, corpus.data.classes) for s, p in runs.items()} for name, runs in pooled.items()
    }
    return folds, {name: summarise(runs) for name, runs in judged.items() if runs}


def table(results: Mapping[str, Any]) -> str:
    lines = ["| | macro-F1 | accuracy | ECE | log loss | seeds |", "|---|---|---|---|---|---|"]
    for name, row in results.items():
        shown = [_with_spread(row[m], *((100, 1) if m in METRICS[:2] else (1, 3))) for m in METRICS]
        lines.append(f"| {name} | {' | '.join(shown)} | {len(row['seeds'])} |")
    return "\n".join(lines)


def _with_spread(values: Mapping[str, Any], factor: int, digits: int) -> str:
    spread = "" if values["std"] is None else f" ± {factor * values['std']:.{digits}f}"
    return f"{factor * values['mean']:.{digits}f}{spread}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--group-by", default="group")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="of the MLP")
    parser.add_argument("--models", type=Path, help="folder of trained models, by fold")
    parser.add_argument("--cache", type=Path, help="folder of rendered pages and words")
    parser.add_argument("--workers", type=int, default=2, help="processes that read documents")
    parser.add_argument("--probabilities", type=Path, default=Path("runs/text_baseline"), help="folder of what is kept")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        results = measure(arguments)
    except UserError as error:
        raise SystemExit(str(error)) from error
    print(f"folds {', '.join(str(fold) for fold in results['folds'])}: {results['documents']} documents\n")
    print(table(results["rows"]))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    data = read_labelled(arguments.data, group_column=arguments.group_by)
    rendering = DocViTConfig.from_dict(VARIANTS["docvit_linear_patch32"]).rendering
    cache = PageCache(arguments.cache or default_cache(), rendering, words=True)
    files, errors = cache.prepare(data.paths, workers=arguments.workers)
    if errors:
        raise SystemExit("\n".join(map(str, errors)))
    corpus = Corpus(data, cache, files)
    kept = Kept(arguments.probabilities, corpus, arguments.folds)
    folds, rows = compare(corpus, list(rows_of(corpus, arguments.models, arguments.folds, arguments.seeds)), kept)
    return {
        "command": command(arguments),
        "documents": sum(len(kept.indices(fold)[1]) for fold in folds),
        "groups": len(set(data.groups or ())),
        "classes": list(data.classes),
        "folds": [fold + 1 for fold in folds],
        "of_folds": arguments.folds,
        "rows": rows,
        "versions": {name: version(name) for name in ("scikit-learn", "numpy", "scipy", "torch")},
        "device": f"{cpu_name()}, {torch.get_num_threads()} threads",
    }


def command(arguments: argparse.Namespace) -> str:
    """The command without the names of folders on this machine."""
    models = " --models MODELS" if arguments.models else ""
    options = f"--group-by {arguments.group_by} --folds {arguments.folds} --seeds {arguments.seeds}{models}"
    return f"python examples/benchmarks/text_baseline.py documents.csv {options} --output {arguments.output.name}"


if __name__ == "__main__":
    main()
