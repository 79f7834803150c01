"""Relevance of patches and words for the predicted class, drawn on the pages."""

from __future__ import annotations

import copy
import math
import os
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor, nn

from docvit.documents.pages import PageStack, read_document
from docvit.documents.patches import PatchSequence, hash_words
from docvit.documents.rendering import Box
from docvit.files import replaced
from docvit.inference.classify import DocumentClassifier
from docvit.inference.prediction import Prediction
from docvit.model.docvit import DocViT
from docvit.model.tokens import token_indices
from docvit.model.words import document_ngrams, page_ngrams

MAX_DRAWN = 24
MAX_WORDS = 12  # in the picture


class WordEvidence(NamedTuple):
    """Evidence of one word for the predicted class.

    Attributes:
        text: the word.
        page: 1-based, as in `Prediction.pages`.
        box: left, top, right, bottom as fractions of the page.
        relevance: in 0..1, 1 for the strongest word of the document.
    """

    text: str
    page: int
    box: Box
    relevance: float


@dataclass(frozen=True)
class Explanation:
    """Evidence of each patch and of each word for the predicted class.

    Attributes:
        prediction: the prediction that is explained.
        pages: the pages as the model saw them, (H, W) or (H, W, 3) uint8.
        relevance: for each page (rows, cols) in 0..1, 1 for the strongest patch of the document; NaN for blank patches,
            which were left out.
        words: those with evidence for the label, the strongest first; none where the model saw no words.
    """

    prediction: Prediction
    pages: list[NDArray[np.uint8]]
    relevance: list[NDArray[np.float32]]
    words: list[WordEvidence] = field(default_factory=list)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Draws the pages with their evidence as one PNG; of a long document the `MAX_DRAWN` most relevant pages.

        Raises:
            OSError: the disk is full, or the folder cannot be written to; `file` is as it was.
        """
        shown = sorted(np.argsort(self.prediction.page_relevance)[::-1][:MAX_DRAWN].tolist())
        figure = self._figure(shown)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings(), replaced(Path(file)) as partial:
            warnings.filterwarnings("ignore", message="Glyph")  # a file name in a script that the font does not have
            figure.savefig(partial, dpi=130, format="png")

    def _figure(self, shown: list[int]) -> Figure:
        columns = min(len(shown), 6)
        rows = math.ceil(len(shown) / columns)
        p = self.prediction
        read = [page for page in p.pages if not page.failed]
        tallest = max(self.pages[i].shape[0] / self.pages[i].shape[1] for i in shown)
        width = max(2.3 * columns, 4.6)
        height = (2.2 * min(tallest, 3.0) + 0.25) * rows
        figure = Figure(figsize=(width, height + 0.7), layout="constrained")
        title = f"{_printable(Path(p.path).name, int(10 * width))}: {p.label} ({p.score:.0%})"
        figure.suptitle(title, fontsize=10, parse_math=False)
        numbers = {read[i].number for i in shown}
        strongest = [word for word in self.words if word.page in numbers][:MAX_WORDS]
        patches = any(np.nanmax(self.relevance[i], initial=0) > 0 for i in shown)
        legend = _legend(strongest, int(22 * width), patches=patches)
        figure.supxlabel(legend, fontsize=6, color="0.4", parse_math=False)
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid:
            axes.axis("off")
        for axes, i in zip(grid, shown, strict=False):
            page = self.pages[i]
            axes.imshow(_overlay(page, self.relevance[i]))
            axes.set_title(f"page {read[i].number} · {p.page_relevance[i]:.0%}", fontsize=8)
            axes.add_patch(Rectangle((0, 0), page.shape[1] - 1, page.shape[0] - 1, fill=False, color="0.6", lw=0.8))
            for word in strongest:
                if word.page == read[i].number:
                    axes.add_patch(_box_of(word, page))
        return figure


def explain(
    classifier: DocumentClassifier,
    document: str | os.PathLike[str] | PageStack,
    *,
    max_pages: int | None = 64,
    password: str | None = None,
    words: bool = True,
    ocr_pages: int = 0,
) -> Explanation:
    """Explains the predicted label of one document.

    The options are those of `DocumentClassifier.predict`; a `PageStack` is taken as it was read.

    Evidence is gradient times activation of the patch tokens that enter the last block, where it is positive
    (Grad-CAM, arXiv 1610.02391, on tokens). The gradient is that of the label's logit; the gradient of its probability
    vanishes in rounding noise where the model is certain. In a model without blocks patches have no tokens and no
    relevance. Evidence of a word is likewise gradient times activation of its n-grams' vectors, on its patch and in its
    page's class token, where the sum is positive.

    Raises:
        DocumentError: the file cannot be read, or is blank.
    """
    model = classifier.model
    if not any(weight.requires_grad for weight in model.parameters()):  # frozen weights give no gradient
        model = copy.deepcopy(model).requires_grad_(True)
    if isinstance(document, PageStack):
        stack = document
    else:
        how = classifier.reading(max_pages=max_pages, password=password, words=words, ocr_pages=ocr_pages)
        del how["timeout"]  # it is read in this process
        stack = read_document(document, classifier.rendering, **how)
    prediction = classifier.classify_pages([stack])[0]
    stack = stack.turn([-page.turned // 90 for page in prediction.pages if not page.failed])  # as it was judged
    if prediction.error is not None:
        raise prediction.error
    batch = model.pack([stack]).to(classifier.device)
    label = classifier.classes.index(prediction.label or "")
    evidence = _evidence(model, batch, label) if model.config.reads_patches else torch.zeros(batch.num_patches)
    evidence = evidence / evidence.max().clamp(min=1e-12) if len(evidence) else evidence
    maps = [np.full(grid, np.nan, np.float32) for grid in batch.grids.tolist()]
    of_pages = (x.cpu().split(batch.page_bounds.diff().tolist()) for x in (batch.row, batch.col, evidence))
    for relevance, row, col, of_patches in zip(maps, *of_pages, strict=True):
        relevance[row.numpy(), col.numpy()] = of_patches.numpy()
    pages = [np.asarray(page) for page in stack.pages]
    return Explanation(prediction, pages, maps, _words(model, batch, stack, label))


def _evidence(model: DocViT, batch: PatchSequence, label: int) -> Tensor:
    """(T,) gradient times activation of each patch, where it is positive."""
    with torch.enable_grad():
        states = model.forward_intermediates(batch)
        tokens = states[f"blocks.{len(model.blocks) - 2}" if len(model.blocks) > 1 else "embed"]
        (gradient,) = torch.autograd.grad(states["logits"][0, label], tokens)
    return (gradient * tokens).sum(1).detach().cpu()[token_indices(batch, model.num_prefix_tokens)].clamp(min=0)


def _words(model: DocViT, batch: PatchSequence, stack: PageStack, label: int) -> list[WordEvidence]:
    """The words with evidence for the class, the strongest first."""
    if model.words is None or not len(batch.words):
        return []
    evidence = evidence_of_ngrams(model, batch, label).split(page_ngrams(batch).diff().tolist())
    found: list[WordEvidence] = []
    grids = batch.grids.tolist()
    for of_page, index, (rows, cols), of_ngrams in zip(stack.words, stack.indices, grids, evidence, strict=True):
        owners = hash_words(of_page, (rows, cols))[2]  # in the order of the batch: no patch with words is left out
        sums = torch.bincount(owners, of_ngrams, minlength=len(of_page)).tolist()
        found += [
            WordEvidence(word.text, index + 1, word.box, relevance)
            for word, relevance in zip(of_page, sums, strict=True)
            if relevance > 0
        ]
    found.sort(key=lambda word: -word.relevance)
    return [word._replace(relevance=word.relevance / found[0].relevance) for word in found]


def evidence_of_ngrams(model: DocViT, batch: PatchSequence, label: int) -> Tensor:
    """(G,) gradient times activation of each n-gram of the batch; those of one kind in a bag share theirs evenly."""
    words = model.words
    assert words is not None
    maps = {words.to_pages: page_ngrams(batch)} | ({words.to_patches: batch.word_bounds} if words.to_patches else {})
    bags: dict[torch.nn.Module, Tensor] = {}

    def start_here(layer: torch.nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        bags[layer] = inputs[0].detach().requires_grad_()
        return (bags[layer],)

    hooks = [layer.register_forward_pre_hook(start_here) for layer in maps]
    try:
        with torch.enable_grad():
            logit = model(batch)[0, label]
            gradients = torch.autograd.grad(logit, [bags[layer] for layer in maps])
    finally:
        for hook in hooks:
            hook.remove()
    parts = [(*part, words.embedding) for part in zip(maps.values(), gradients, strict=True)]
    if words.of_documents is not None:  # the head reads their sum
        weights = cast(nn.Linear, model.head).weight[label, -words.of_documents.embedding_dim :]
        parts.append((document_ngrams(batch), weights[None], words.of_documents))
    total = torch.zeros(len(batch.words))
    for bounds, gradient, table in parts:
        found = words.weigh(batch.words, bounds)
        assert found.weights is not None
        with torch.no_grad():
            vectors = table.weight[found.ids] * found.weights[:, None]
            shares = (vectors * gradient[found.bags]).sum(1) / found.repeats
        keys = found.bags * words.buckets + found.ids
        bag = torch.searchsorted(bounds[1:], torch.arange(len(batch.words)), right=True).to(keys.device)
        total += shares[torch.searchsorted(keys, bag * words.buckets + batch.words % words.buckets)].cpu()
    return total


def _legend(words: Sequence[WordEvidence], width: int, *, patches: bool) -> str:
    red = "red: evidence for the label, strongest patch darkest; " if patches else ""
    legend = f"{red}per cent: the page's share of the evidence for the label"
    if not words:
        return legend
    listed = ", ".join(f"{_printable(word.text, 24)} ({word.page})" for word in words)
    return f"{legend}; orange: strongest words\n" + textwrap.fill(f"strongest words (page): {listed}", width)


def _printable(text: str, limit: int) -> str:
    """The text in at most `limit` printable characters."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit // 2) :]}"


def _box_of(word: WordEvidence, page: NDArray[np.uint8]) -> Rectangle:
    """The word's box in pixels, a little larger than the word."""
    (left, top, right, bottom), (height, width) = word.box, page.shape[:2]
    size = ((right - left) * width + 2, (bottom - top) * height + 2)
    return Rectangle((left * width - 1.5, top * height - 1.5), *size, color="tab:orange", alpha=0.45, lw=0)


def _overlay(page: NDArray[np.uint8], relevance: NDArray[np.float32]) -> NDArray[np.float64]:
    """The page in grey with its evidence in colour, (H, W, 3)."""
    grey = page if page.ndim == 2 else page.mean(2)
    scale = page.shape[0] // relevance.shape[0]
    heat = np.kron(np.nan_to_num(relevance), np.ones((scale, scale)))[..., None]
    colour = colormaps["YlOrRd"](0.25 + 0.75 * heat[..., 0])[..., :3]
    ink = grey[..., None] / 255
    return (1 - 0.75 * np.sqrt(heat)) * ink + 0.75 * np.sqrt(heat) * colour * (0.35 + 0.65 * ink)
