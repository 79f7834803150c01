"""What counts: a trained model without its patch tokens, page statistics, page index, words, or all pages but one.

    python examples/benchmarks/ablation.py DOCUMENTS.csv --models runs --output results/ablation.json

The model in runs/fold-K is judged on fold K of 5 of `docvit train --fold`, where there is one, on up to 64 pages of
each document. It is not trained again: each row takes one thing away from what it reads, with words and by pixels.

    patch tokens     patches are what their address and their words are; class tokens keep the statistics of their page
    page statistics  every page has those of the average page of training
    page index       every page is the first
    other pages      the first page alone
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from folds import folds_of, parser_of
from torch import Tensor
from tqdm import tqdm

from docvit import DocViT, PatchSequence
from docvit.data.labels import LabelledDocuments
from docvit.data.metrics import report
from docvit.documents.cache import CachedDocument, PageCache, default_cache
from docvit.documents.pages import PageStack, spread
from docvit.model.stems import InkStem

PAGES = 64


def take_away(model: DocViT, stack: PageStack, words: bool) -> Iterator[tuple[str, Tensor]]:
    """Logits of one document (1, C) with everything, and with one thing less each."""
    batch = model.pack([stack], words=words)
    patches, statistics = model.forward_stem(batch)

    def logits(of_batch: PatchSequence, *stem: Tensor | None) -> Tensor:
        return model.forward_head(model.forward_features(of_batch, stem=stem))

    yield "nothing", logits(batch, patches, statistics)
    yield "patch tokens", logits(batch, torch.zeros_like(patches), statistics)
    stem = model.patch_embed
    if isinstance(stem, InkStem) and statistics is not None:
        # normalised, the average page has zeros
        yield "page statistics", logits(batch, patches, stem.page_proj.bias.expand_as(statistics))
    first = replace(batch, page=torch.zeros_like(batch.page), page_index=torch.zeros_like(batch.page_index))
    yield "page index", logits(first, patches, statistics)
    yield "other pages", model(model.pack([stack.take([0])], words=words))


@torch.inference_mode()
def judge(model: DocViT, data: LabelledDocuments) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracy and macro-F1, with words and by pixels, by what is taken away."""
    files, _ = PageCache(default_cache(), model.config.rendering, words=True).prepare(data.paths)
    found: dict[str, dict[str, list[Tensor]]] = {"words": {}, "pixels": {}}
    labels = []
    for path, label in tqdm(list(zip(data.paths, data.labels, strict=True)), unit="doc"):
        if path not in files:
            continue
        labels.append(label)
        document = CachedDocument.open(files[path])
        stack = document.load([document.indices[i] for i in spread(len(document.indices), PAGES)])
        for reading, rows in found.items():
            for name, logits in take_away(model, stack, words=reading == "words"):
                rows.setdefault(name, []).append(logits)

    def measure(logits: list[Tensor]) -> dict[str, float]:
        measured = report(torch.cat(logits).softmax(1).numpy(), labels, data.classes)
        return {"accuracy": round(measured.accuracy, 3), "macro_f1": round(measured.macro_f1, 3)}

    return {reading: {name: measure(row) for name, row in rows.items()} for reading, rows in found.items()}


def main() -> None:
    args = parser_of(__doc__).parse_args()
    results: dict[str, Any] = {}
    for fold, folder, _, held_out in folds_of(args):
        results[str(fold)] = judge(DocViT.from_pretrained(folder).eval(), held_out)
        for reading, rows in results[str(fold)].items():
            for name, scores in rows.items():
                print(f"fold {fold}, {reading}, without {name}: {scores}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
