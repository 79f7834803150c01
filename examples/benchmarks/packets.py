"""Packets cut into their documents: `docvit split` against cutting where labels change or the text does.

Packets are glued from documents of groups that the model has not seen, half of the neighbours of one kind
(`docvit.data.packets`), whole documents and first pages, some with blank pages between. Each fold has a model of its
own, trained without its documents:

    docvit train documents.csv --group-by group --fold 1/5 --model docvit_linear_patch32 --words 16384 --epochs 24 \
        --packets 1 --output runs/fold-1
    python examples/benchmarks/packets.py documents.csv --models runs --output packets.json

The baselines read the same pages with the same model. Label: a document begins where the label of the page changes.
Text: where the TF-IDF cosine of neighbours is below the threshold that gives the best F1 on packets of training
documents. Both: where the label changes and the cosine is below. A fold takes about five minutes on a core.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from folds import FOLDS, folds_of, parser_of

from docvit.data.labels import LabelledDocuments
from docvit.data.packets import Piece, draw_packet, glue
from docvit.documents.cache import CachedDocument, PageCache, default_cache
from docvit.documents.pages import PageStack
from docvit.inference.segments import segment
from docvit.model.docvit import DocViT

MOST_PAGES, TUNING, SEED = 64, 60, 0


class Seen(NamedTuple):
    """One packet as a model sees it, page by page (N,)."""

    begins: np.ndarray
    logits: np.ndarray
    kinds: np.ndarray  # (N, C) log-probabilities
    cosine: np.ndarray  # TF-IDF, with the page before
    alike: np.ndarray  # a document begins that is of the kind of the one before it


Cut = Callable[[Seen], np.ndarray]


def cut_by_model(seen: Seen, sure: float = 0.0) -> np.ndarray:
    begins, probability = segment(seen.logits, seen.kinds)
    return np.isin(np.arange(len(seen.logits)), [i for i in begins if probability[i] >= sure])


def cut_by_label(seen: Seen) -> np.ndarray:
    labels = seen.kinds.argmax(1)
    return np.concatenate([[True], labels[1:] != labels[:-1]])


def cut_by_text(threshold: float) -> Cut:
    return lambda seen: seen.cosine < threshold


def cut_by_both(threshold: float) -> Cut:
    return lambda seen: cut_by_label(seen) & (seen.cosine < threshold)


class Documents:
    """The rendered documents of one side of a fold, as packets and alone."""

    def __init__(self, data: LabelledDocuments, cache: PageCache) -> None:
        files, _ = cache.prepare(data.paths, workers=1)
        self.documents = [CachedDocument.open(files[path]) for path in data.paths]
        self.labels = np.array(data.labels)
        self.groups = np.unique(np.array(data.groups), return_inverse=True)[1]
        self.lengths = [len(document.indices) for document in self.documents]

    def packets(self, count: int) -> list[list[Piece]]:
        found = []
        for i in range(count):
            random = np.random.default_rng((SEED, i))
            first = int(random.integers(len(self.documents)))
            found.append(draw_packet(first, self.labels, self.groups, self.lengths, random, max_pages=MOST_PAGES))
        return found

    def singles(self) -> list[list[Piece]]:
        return [[Piece(i, length, False)] for i, length in enumerate(self.lengths)]

    def load(self, piece: Piece) -> PageStack:
        document = self.documents[piece.document]
        return document.load(document.indices[: piece.pages])

    @torch.inference_mode()
    def see(self, model: DocViT, pieces: Sequence[Piece]) -> Iterator[Seen]:
        """A packet with its words, and by pixels alone."""
        stack, begins = glue(pieces, self.load)
        kinds = self.labels[[piece.document for piece in pieces]]
        alike = np.zeros(len(begins), bool)
        alike[np.flatnonzero(begins)[1:]] = [a == b for a, b in pairwise(kinds)]
        batch, head = model.pack([stack]), model.boundaries
        assert head is not None, "a model trained with --packets"
        for of_batch in (batch, batch.without_words()):
            features = model.forward_features(of_batch)
            logits = model.forward_boundaries(features, of_batch).double().numpy()
            by_page = model.forward_pages(features).double().log_softmax(1).numpy()
            cosine = head.ties(of_batch, model.words)[:, 0, 1].numpy()
            yield Seen(np.array(begins), logits, by_page, cosine, alike)


def measure(packets: Sequence[Seen], singles: Sequence[Seen], cut: Cut) -> dict[str, float]:
    """Boundary precision, recall and F1; packets right throughout; recall between one kind; single documents cut."""
    hits = found = real = right = alike = alike_hits = 0
    for seen in packets:
        begins, wanted = cut(seen)[1:], seen.begins[1:]
        hits, found, real = hits + int((begins & wanted).sum()), found + int(begins.sum()), real + int(wanted.sum())
        right += int((begins == wanted).all())
        alike, alike_hits = alike + int(seen.alike.sum()), alike_hits + int((seen.alike[1:] & begins).sum())
    return {
        "f1": 2 * hits / max(1, found + real),
        "precision": hits / max(1, found),
        "recall": hits / max(1, real),
        "right": right / len(packets),
        "recall_of_one_kind": alike_hits / max(1, alike),
        "singles_cut": float(np.mean([cut(seen)[1:].any() for seen in singles])),
    }


def best_threshold(packets: Sequence[Seen], of: Callable[[float], Cut]) -> float:
    return max(np.arange(0, 1, 0.02), key=lambda threshold: measure(packets, packets[:1], of(threshold))["f1"])


def run_fold(parts: Sequence[LabelledDocuments], folder: Path, cache: Path, count: int) -> dict[str, Any]:
    """`parts`: the documents that the model was trained on, and those left out."""
    model = DocViT.from_pretrained(folder)
    pages = PageCache(cache, model.config.rendering, words=True)
    known, held_out = (Documents(part, pages) for part in parts)
    tuning = [next(known.see(model, pieces)) for pieces in known.packets(TUNING)]
    text, both = best_threshold(tuning, cut_by_text), best_threshold(tuning, cut_by_both)
    packets = [list(held_out.see(model, pieces)) for pieces in held_out.packets(count)]
    singles = [list(held_out.see(model, pieces)) for pieces in held_out.singles()]
    ways: dict[str, Cut] = {"split": cut_by_model, "split, min_score 0.9": lambda seen: cut_by_model(seen, 0.9)}
    ways["label"] = cut_by_label
    result = {}
    for i, name in enumerate(("words", "pixels")):
        more = {"text": cut_by_text(text), "both": cut_by_both(both)} if name == "words" else {}
        seen = [pair[i] for pair in packets], [pair[i] for pair in singles]
        result[name] = {way: measure(*seen, cut) for way, cut in {**ways, **more}.items()}
    return result


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(1, FOLDS + 1)))
    parser.add_argument("--packets", type=int, default=200, help="per fold")
    parser.add_argument("--cache", type=Path, default=None, help="rendered pages")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    results: dict[str, Any] = {}
    for fold, folder, *parts in folds_of(options):
        if fold not in options.folds:
            continue
        results[str(fold)] = run_fold(parts, folder, options.cache or default_cache(), options.packets)
        if options.output:
            options.output.write_text(json.dumps({"packets": options.packets, "folds": results}, indent=2) + "\n")
        for name, ways in results[str(fold)].items():
            for way, numbers in ways.items():
                print(fold, name, way, *(f"{key} {value:.3f}" for key, value in numbers.items()), flush=True)


if __name__ == "__main__":
    main()
