"""Do the ties that say where a document begins also say that its pages are out of order?

    python examples/experiments/page_order_head.py DOCUMENTS.csv --models runs --output results/page_order_head.json

`docvit split` reads what ties neighbouring pages together: titles, page numbers, words, pixels. Here a head of the same
kind learns on the same frozen model which page follows which: for each page of a document, in its order or moved (as in
page_order.py), whether the page before it is the one that belongs there. Its score for a document is that of its worst
page. The model in runs/fold-K is judged on fold K of 5 of `docvit train --fold`, where there is one.

A warning must be rare where nothing is wrong: reported is the share of moved documents that are found where one
untouched document in fifty is taken for a moved one; and how often, of the two orders, the right one is called better.
Documents have 3 pages or more; the first 12 are read. A fold takes about five minutes on a core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from page_moves import TASKS, moved
from tqdm import tqdm

from docvit import DocViT, read_labelled
from docvit.data.labels import LabelledDocuments, split_groups
from docvit.documents.cache import CachedDocument, PageCache, default_cache
from docvit.model.boundaries import BoundaryHead
from docvit.training.batches import Shuffled
from docvit.training.boundaries import BATCH, SETTINGS, Pages, boundary_loss, join
from docvit.training.loop import fit

FEWEST, MOST = 3, 12  # pages
ROUNDS = 3  # of other moves of the same documents, in training
FALSE_ALARMS = 0.02


@torch.inference_mode()
def see(model: DocViT, document: CachedDocument, order: list[int], words: bool) -> Pages:
    """The first pages of a document in this order; a page `begins` where another belongs before it."""
    stack = document.load(document.indices[: len(order)]).take(order)
    batch = model.pack([stack._replace(indices=sorted(stack.indices))], words=words)
    features = model.forward_features(batch)
    assert model.boundaries is not None, "a model trained with --packets"
    breaks = [False] + [after != before + 1 for before, after in pairwise(order)]
    ties = model.boundaries.ties(batch, model.words)
    return Pages(features.pages, ties, features.document_of_page, torch.tensor(breaks))


def documents(data: LabelledDocuments, model: DocViT) -> list[CachedDocument]:
    """Those of enough pages, of which none is missing among the first."""
    files, _ = PageCache(default_cache(), model.config.rendering, words=True).prepare(data.paths)
    opened = [CachedDocument.open(files[path]) for path in data.paths if path in files]
    return [d for d in opened if len(d.indices) >= FEWEST and list(d.indices[:MOST])[-1] < MOST]


def examples(model: DocViT, chosen: list[CachedDocument]) -> Iterator[Pages]:
    for number in range(ROUNDS):
        for i, document in enumerate(tqdm(chosen, desc=f"round {number + 1}", unit="doc")):
            random, count = np.random.default_rng((number, i)), min(MOST, len(document.indices))
            words = bool(random.random() < 0.6)
            for task in ("untouched", str(random.choice(TASKS))):
                yield see(model, document, moved(count, task, random), words)


def train(model: DocViT, chosen: list[CachedDocument]) -> BoundaryHead:
    seen, own, c = list(examples(model, chosen)), model.boundaries, model.config
    assert own is not None
    torch.manual_seed(0)
    head = BoundaryHead(c)
    batches = Shuffled(len(seen), BATCH, partial(join, seen), 0)
    fit(head, batches, boundary_loss, replace(SETTINGS, seed=0), device=torch.device("cpu"), description="order")
    return head.eval()


@torch.inference_mode()
def judge(model: DocViT, head: BoundaryHead, chosen: list[CachedDocument], words: bool) -> dict[str, Any]:
    scores: dict[str, list[float]] = {}
    for i, document in enumerate(chosen):
        for task in ("untouched", *TASKS):
            order = moved(min(MOST, len(document.indices)), task, np.random.default_rng(i))
            pages = see(model, document, order, words)
            scores.setdefault(task, []).append(float(head(pages.tokens, pages.ties, pages.packet)[1:].max()))
    untouched = np.array(scores.pop("untouched"))
    alarm = np.quantile(untouched, 1 - FALSE_ALARMS)
    rows = {task: np.array(row) for task, row in scores.items()}
    found = {task: round(float((row > alarm).mean()), 3) for task, row in rows.items()}
    right = {task: round(float((row > untouched).mean()), 3) for task, row in rows.items()}
    return {"documents": len(chosen), "found": found, "right of two": right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument(
        "--models", type=Path, required=True, help="folder with the models of the folds, fold-1 to fold-5"
    )
    parser.add_argument("--group-by", default="group")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    data = read_labelled(args.data, group_column=args.group_by)
    results: dict[str, Any] = {}
    for fold in range(1, 6):
        folder = args.models / f"fold-{fold}"
        if not folder.is_dir():
            continue
        model = DocViT.from_pretrained(folder).eval()
        known, held_out = (documents(part, model) for part in split_groups(data, fold - 1, 5))
        head = train(model, known)
        results[str(fold)] = {name: judge(model, head, held_out, name == "words") for name in ("words", "pixels")}
        print(fold, json.dumps(results[str(fold)]), flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
