"""Own classes from a few examples each, of kinds that the model has never seen, judged on other sources.

    python examples/benchmarks/few_shot.py DOCUMENTS.csv --group-by group --models runs/even runs/odd \\
        --output results/few_shot.json

Each model was trained on some of the kinds in DOCUMENTS.csv (its `config.json` says which), with the same command as
the bundled one; the others are new to it. Whole groups are held out: in three folds, drawn anew by every seed, the
examples come from two thirds of the groups, of different groups as far as there are any, and all documents of the
other third are judged. Macro-F1 of `docvit fit` with words and by pixels alone (the same head), and of TF-IDF of
characters (2 to 5, within words, sublinear) with logistic regression (C = 30, classes balanced) on the same examples.
± is the deviation over seeds, folds and models. That of a difference is over the same pairs.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from text_baseline import Corpus

from docvit import DocViT, read_labelled
from docvit.documents.cache import PageCache, default_cache
from docvit.files import replaced
from docvit.training.few_shot import Examples, fit_head, see

FOLDS = 3
Scores = dict[str, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=Path)
    parser.add_argument("--group-by", required=True, metavar="COLUMN")
    parser.add_argument("--models", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--examples", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    tables: dict[int, Scores] = {count: {} for count in options.examples}
    for folder in options.models:
        model = DocViT.from_pretrained(folder)
        corpus = new_kinds(options.documents, options.group_by, model)
        start = time.perf_counter()
        seen = see(model, corpus.data, corpus.files)
        seconds, kinds = time.perf_counter() - start, ", ".join(corpus.data.classes)
        print(f"{folder}: {len(seen)} documents of {kinds}, seen in {seconds:.0f} s", flush=True)
        for count, scores in tables.items():
            for train, test in parts(corpus, count, options.seeds):
                for name, score in judge(model, seen, corpus, train, test).items():
                    scores.setdefault(name, []).append(score)
    for count, scores in tables.items():
        print(f"\n{count} of each kind, {len(next(iter(scores.values())))} runs: macro-F1 in %")
        for name, values in with_gains(scores).items():
            print(f"  {name:<24} {100 * np.mean(values):5.1f} ± {100 * np.std(values):.1f}")
    if options.output is not None:
        with replaced(options.output) as partial:
            partial.write_text(json.dumps({str(count): scores for count, scores in tables.items()}, indent=1) + "\n")


def new_kinds(documents: Path, group_by: str, model: DocViT) -> Corpus:
    """The documents of kinds that the model does not know, without copies."""
    data = read_labelled(documents, group_column=group_by)
    new = [i for i, label in enumerate(data.labels) if data.classes[label] not in model.config.classes]
    classes = sorted({data.classes[data.labels[i]] for i in new})
    labels = tuple(classes.index(data.classes[data.labels[i]]) for i in new)
    data = replace(data.subset(new), labels=labels, classes=tuple(classes))
    cache = PageCache(default_cache(), model.config.rendering, words=True)
    files, errors = cache.prepare(data.paths)
    if errors:
        raise SystemExit("\n".join(map(str, errors)))
    first = {files[path]: i for i, path in reversed(list(enumerate(data.paths)))}
    return Corpus(data.subset(sorted(first.values())), cache, files)


def parts(corpus: Corpus, count: int, seeds: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of `count` examples per class, and of all documents of other groups."""
    labels, groups = corpus.labels, corpus.data.groups or ()
    for seed in range(seeds):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
        for fold, (pool, test) in enumerate(folds.split(labels, labels, groups)):
            random = np.random.default_rng((seed, fold))
            chosen = [choose(random.permutation(pool[labels[pool] == c]), groups, count) for c in np.unique(labels)]
            yield np.concatenate(chosen), test


def choose(candidates: np.ndarray, groups: Sequence[str], count: int) -> np.ndarray:
    """The first `count`, those of a new group before those of one that has been seen."""
    met: set[str] = set()
    again = []
    for i in candidates:
        again.append(groups[i] in met)
        met.add(groups[i])
    return candidates[np.argsort(again, kind="stable")][:count]


def judge(model: DocViT, seen: Examples, corpus: Corpus, train: np.ndarray, test: np.ndarray) -> Mapping[str, float]:
    """Macro-F1 of each way of fitting the training examples, on the others."""
    fitted, _ = fit_head(model, seen.select(train))
    assert fitted.words is not None
    assert fitted.words.of_documents is not None
    direct = torch.from_numpy(seen.words[test] @ fitted.words.of_documents.weight.detach().numpy())
    views = {"fit, with words": (0, direct), "fit, by pixels alone": (1, torch.zeros_like(direct))}
    found = {"TF-IDF": corpus.logistic_regression(train, test).argmax(1)}
    for name, (view, words) in views.items():
        with torch.inference_mode():
            found[name] = fitted.head(torch.cat([seen.features[test, view], words], 1)).argmax(1).numpy()
    return {name: f1_score(corpus.labels[test], rows, average="macro") for name, rows in found.items()}


def with_gains(scores: Scores) -> Scores:
    gains = np.subtract(scores["fit, with words"], scores["TF-IDF"]).tolist()
    return {**scores, "with words, over TF-IDF": gains}


if __name__ == "__main__":
    main()
