"""Relevance of patches for the predicted class, drawn on the pages."""

from __future__ import annotations

import copy
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from docvit.documents.pages import PageStack, read_document
from docvit.documents.patches import PatchSequence
from docvit.inference.classify import DocumentClassifier, Prediction
from docvit.model.docvit import DocViT
from docvit.model.tokens import token_indices

MAX_DRAWN = 24


@dataclass(frozen=True)
class Explanation:
    """Evidence of each patch for the predicted class.

    Attributes:
        prediction: the prediction that is explained.
        pages: the pages as the model saw them, (H, W) or (H, W, 3) uint8.
        relevance: for each page (rows, cols) in 0..1, 1 for the strongest patch of the document; NaN for blank patches,
            which were left out.
    """

    prediction: Prediction
    pages: list[NDArray[np.uint8]]
    relevance: list[NDArray[np.float32]]

    def save(self, file: str | os.PathLike[str]) -> None:
        """Draws the pages with their evidence as one PNG; of a long document the `MAX_DRAWN` most relevant pages."""
        shown = sorted(np.argsort(self.prediction.page_relevance)[::-1][:MAX_DRAWN].tolist())
        figure = self._figure(shown)
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # a file name in a script that the font does not have
            figure.savefig(file, dpi=130)

    def _figure(self, shown: list[int]) -> Figure:
        columns = min(len(shown), 6)
        rows = math.ceil(len(shown) / columns)
        p = self.prediction
        read = [page for page in p.pages if not page.failed]
        tallest = max(self.pages[i].shape[0] / self.pages[i].shape[1] for i in shown)
        width = max(2.3 * columns, 4.6)
        height = (2.2 * min(tallest, 3.0) + 0.25) * rows
        figure = Figure(figsize=(width, height + 0.7), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(f"{_name(p.path, int(10 * width))}: {p.label} ({p.score:.0%})", fontsize=10, parse_math=False)
        legend = "red: evidence for the label, strongest patch darkest; per cent: the page's share of it"
        figure.supxlabel(legend, fontsize=6, color="0.4")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid:
            axes.axis("off")
        for axes, i in zip(grid, shown, strict=False):
            page = self.pages[i]
            axes.imshow(_overlay(page, self.relevance[i]))
            axes.set_title(f"page {read[i].number} · {p.page_relevance[i]:.0%}", fontsize=8)
            axes.add_patch(Rectangle((0, 0), page.shape[1] - 1, page.shape[0] - 1, fill=False, color="0.6", lw=0.8))
        return figure


def explain(
    classifier: DocumentClassifier, document: str | os.PathLike[str] | PageStack, *, max_pages: int | None = 64
) -> Explanation:
    """Explains the predicted label of one document.

    Evidence is gradient times activation of the patch tokens that enter the last block, where it is positive
    (Grad-CAM, arXiv 1610.02391, on tokens). The gradient is that of the label's logit; the gradient of its probability
    vanishes in rounding noise where the model is certain. In a model without blocks patches have no tokens: there every
    patch of a page has the relevance of the page.

    Raises:
        DocumentError: the file cannot be read, or is blank.
    """
    model = classifier.model
    if not any(weight.requires_grad for weight in model.parameters()):  # frozen weights give no gradient
        model = copy.deepcopy(model).requires_grad_(True)
    stack = (
        document
        if isinstance(document, PageStack)
        else read_document(document, classifier.rendering, max_pages=max_pages)
    )
    prediction = classifier.classify_pages([stack])[0]
    if prediction.error is not None:
        raise prediction.error
    batch = model.pack([stack]).to(classifier.device)
    if model.config.reads_patches:
        evidence = _evidence(model, batch, classifier.classes.index(prediction.label or ""))
    else:
        evidence = torch.tensor(prediction.page_relevance)[batch.page_of_patch]
    evidence = evidence / evidence.max().clamp(min=1e-12) if len(evidence) else evidence
    maps = []
    for page, grid in enumerate(batch.grids.tolist()):
        patches = slice(int(batch.page_bounds[page]), int(batch.page_bounds[page + 1]))
        relevance = np.full(grid, np.nan, np.float32)
        relevance[batch.row[patches].cpu(), batch.col[patches].cpu()] = evidence[patches].numpy()
        maps.append(relevance)
    return Explanation(prediction, [np.asarray(page) for page in stack.pages], maps)


def _evidence(model: DocViT, batch: PatchSequence, label: int) -> Tensor:
    """(T,) gradient times activation of each patch, where it is positive."""
    with torch.enable_grad():
        states = model.forward_intermediates(batch)
        tokens = states[f"blocks.{len(model.blocks) - 2}" if len(model.blocks) > 1 else "embed"]
        (gradient,) = torch.autograd.grad(states["logits"][0, label], tokens)
    return (gradient * tokens).sum(1).detach().cpu()[token_indices(batch, model.num_prefix_tokens)].clamp(min=0)


def _name(path: str, limit: int) -> str:
    """The file's name in at most `limit` printable characters."""
    name = "".join(c if c.isprintable() else "?" for c in Path(path).name)
    return name if len(name) <= limit else f"{name[: limit // 2]}…{name[-(limit // 2) :]}"


def _overlay(page: NDArray[np.uint8], relevance: NDArray[np.float32]) -> NDArray[np.float64]:
    """The page in grey with its evidence in colour, (H, W, 3)."""
    grey = page if page.ndim == 2 else page.mean(2)
    scale = page.shape[0] // relevance.shape[0]
    heat = np.kron(np.nan_to_num(relevance), np.ones((scale, scale)))[..., None]
    colour = colormaps["YlOrRd"](0.25 + 0.75 * heat[..., 0])[..., :3]
    ink = grey[..., None] / 255
    return (1 - 0.75 * np.sqrt(heat)) * ink + 0.75 * np.sqrt(heat) * colour * (0.35 + 0.65 * ink)
