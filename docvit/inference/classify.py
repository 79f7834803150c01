"""`DocumentClassifier`: paths in, predictions out."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from docvit.documents.errors import DocumentError
from docvit.documents.pages import PageStack, read_document
from docvit.documents.patches import PatchSequence
from docvit.documents.rendering import Rendering
from docvit.documents.workers import read_documents
from docvit.errors import SettingError
from docvit.hardware import cast_linear, choose_device, cpu_streams, has_fast_bf16, in_streams
from docvit.inference.strategies import get_strategy
from docvit.model.docvit import DocViT
from docvit.model.pretrained import load_pretrained

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

Read = PageStack | DocumentError

BUDGET = 1280


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one document; for a file that could not be read, only `path` and `error` are set.

    Attributes:
        label: the most probable class.
        score: its probability.
        scores: class -> probability, the most probable first.
        num_pages: pages of the document.
        pages_read: pages that were read (see `max_pages`).
        page_relevance: for each page read, its share of the evidence for `label`: the probability that its class token
            alone gives the label, normalised over the pages. Sums to 1. Empty under the strategy `grid` for more
            than one page, since they have no class tokens of their own.
        pages: the 1-based numbers of the pages read; under a strategy, of those that it uses.
        error: why the file could not be read.
    """

    path: str
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    num_pages: int | None = None
    pages_read: int | None = None
    page_relevance: list[float] = field(default_factory=list)
    error: DocumentError | None = None
    pages: list[int] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields of a JSON line; `error` is null or `{"type", "message"}`."""
        names = ("path", "label", "score", "scores", "num_pages", "pages_read", "page_relevance")
        return {name: getattr(self, name) for name in names} | {"error": self.error.as_dict() if self.error else None}


class DocumentClassifier:
    """Classifies files with a DocViT.

    Args:
        model: a DocViT with a head.
        device: where it runs; CUDA if there is one, else the CPU.
        renderer: `pdfium` or `poppler` instead of the one that the model was trained with (warns).

    Raises:
        ValueError: the model has no classes, or the machine no such device.
    """

    def __init__(self, model: DocViT, *, device: torch.device | str | None = None, renderer: str | None = None) -> None:
        if not model.num_classes:
            raise SettingError("the model has no classes: train it on labels first (docvit train --init DIR)")
        self.device = choose_device(device)
        self.model = model.eval().to(self.device)
        self.classes = model.config.classes or tuple(str(i) for i in range(model.num_classes))
        self.rendering: Rendering = model.config.rendering
        if renderer and renderer != self.rendering.renderer:
            logger.warning(
                "this model was trained on pages drawn by %s and will see pages drawn by %s: expect some loss",
                self.rendering.renderer,
                renderer,
            )
            self.rendering = replace(self.rendering, renderer=renderer)
        # models in another precision run in their own
        self.bf16 = has_fast_bf16(self.device) and model.cls_token.dtype == torch.float32

    @classmethod
    def from_pretrained(
        cls, model: PathLike | None = None, *, device: torch.device | str | None = None, renderer: str | None = None
    ) -> DocumentClassifier:
        """The model in the box (None), or one from a folder or a hub id.

        Raises:
            ModelError: there is no such model, or it cannot be loaded.
        """
        return cls(load_pretrained(model), device=device, renderer=renderer)

    def __call__(self, path: PathLike, *, max_pages: int | None = 64) -> Prediction:
        """Classifies one document.

        Raises:
            DocumentError: the file cannot be read; the error's class says how.
        """
        return self.classify_pages([read_document(path, self.rendering, max_pages=max_pages)])[0]

    def predict(
        self,
        paths: Iterable[PathLike],
        *,
        strategy: str = "document",
        max_pages: int | None = 64,
        workers: int = 2,
        timeout: float = 60.0,
        budget: int = BUDGET,
    ) -> Iterator[Prediction]:
        """Classifies a stream of files, in order; a file that cannot be read yields its error and the rest goes on.

        Pages are rendered in worker processes beside the model, a bounded number of documents ahead. On the CPU the
        model runs on several batches at once, on a few cores each: small matrices leave many cores waiting. Do not
        change the model while a stream is open.

        Args:
            paths: read lazily, so it may be endless.
            strategy: the model's own way, `document`, or one that classifies pages (`docvit.strategies`): `first`,
                `second`, `last`, `grid`, `max-confidence`, `soft-vote`, `hard-vote`.
            max_pages: of a longer document only so many are read, spread evenly, first and last always in.
            workers: rendering processes; 0 renders in this one, without `timeout`.
            timeout: seconds after which the rendering of a document is given up.
            budget: patches, blank ones too, after which a batch is complete. About half of them are kept; with many
                more a processor's caches overflow.

        Raises:
            ValueError: there is no such strategy.
        """
        max_pages = get_strategy(strategy).max_pages or max_pages
        names = (os.fspath(path) for path in paths)
        read = read_documents(names, self.rendering, max_pages=max_pages, workers=workers, timeout=timeout)
        streams = cpu_streams() if self.device.type == "cpu" else 1
        batches = in_batches(read, self.rendering, budget)
        for rows in in_streams(partial(self.for_stream()._settle, strategy=strategy), batches, streams):
            yield from rows

    def for_stream(self) -> DocumentClassifier:
        """The same for many batches: what each of them would do again is done once."""
        ready = copy.copy(self)
        if self.bf16:
            ready.model = cast_linear(self.model)
        return ready

    def _settle(self, results: list[Read], *, strategy: str) -> list[Prediction]:
        stacks = [r for r in results if isinstance(r, PageStack)]
        predictions = iter(self.classify_pages(stacks, strategy=strategy))
        return [next(predictions) if isinstance(r, PageStack) else Prediction(r.path, error=r) for r in results]

    def classify_pages(self, stacks: list[PageStack], *, strategy: str = "document") -> list[Prediction]:
        """Classifies documents whose pages are already read, all in one batch; `strategy` as for `predict`."""
        way = get_strategy(strategy)
        if not stacks:
            return []
        used = [way.select(stack) for stack in stacks]
        views = [way.views(stack, self.rendering) for stack in used]
        batch = self.model.pack([view for group in views for view in group]).to(self.device)
        scores, by_page = (part.cpu() for part in self.run(batch))
        counts = [len(group) for group in views]
        combined = torch.stack([way.combine(rows) for rows in scores.split(counts)])
        pages = by_page.split([sum(len(view.pages) for view in group) for group in views])
        return [self._prediction(*row) for row in zip(used, combined, pages, strict=True)]

    @torch.inference_mode()
    def run(self, batch: PatchSequence) -> tuple[Tensor, Tensor]:
        """Probabilities of documents (B, C), and what each page token alone says (N, C)."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.model.forward_features(batch)
            logits, by_page = self.model.forward_head(features), self.model.forward_pages(features)
        return logits.float().softmax(1), by_page.float().softmax(1)

    def _prediction(self, stack: PageStack, scores: Tensor, by_page: Tensor) -> Prediction:
        best = int(scores.argmax())
        evidence = by_page[:, best] / by_page[:, best].sum().clamp(min=torch.finfo(torch.float32).tiny)
        ranked = scores.sort(descending=True, stable=True)
        return Prediction(
            path=stack.path,
            label=self.classes[best],
            score=float(scores[best]),
            scores={self.classes[i]: float(s) for s, i in zip(ranked.values, ranked.indices.tolist(), strict=True)},
            num_pages=stack.num_pages,
            pages_read=len(stack.indices),
            page_relevance=evidence.tolist() if len(evidence) == len(stack.pages) else [],
            pages=[i + 1 for i in stack.indices],
        )


def in_batches(read: Iterator[Read], rendering: Rendering, budget: int) -> Iterator[list[Read]]:
    """Documents until they have `budget` patches: 1, 2, 4, ... of them at most, so that the first come at once."""
    waiting: list[Read] = []
    patches, limit = 0, 1
    for result in read:
        waiting.append(result)
        if isinstance(result, PageStack):
            patches += sum(page.shape[0] * page.shape[1] for page in result.pages) // rendering.multiple**2
        if patches >= budget or len(waiting) >= limit:
            yield waiting
            waiting, patches, limit = [], 0, min(2 * limit, 32)
    if waiting:
        yield waiting
