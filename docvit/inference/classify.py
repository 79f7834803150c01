"""`DocumentClassifier`: documents in, predictions out."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar, cast, overload

import numpy as np
import torch
from torch import Tensor

from docvit.documents.errors import DocumentError
from docvit.documents.ocr import pages_for
from docvit.documents.pages import PageStack, spread
from docvit.documents.patches import PatchSequence
from docvit.documents.rendering import Rendering
from docvit.documents.sources import Data, is_one_document
from docvit.documents.workers import in_batches, read_alone, read_documents
from docvit.errors import SettingError
from docvit.hardware import cast_linear, choose_device, cpu_streams, has_fast_bf16, in_streams
from docvit.inference.prediction import Embedding, Page, Part, Prediction
from docvit.inference.rows import error_of, finished, note_of, with_failed, with_turns, with_words
from docvit.inference.segments import segment
from docvit.inference.strategies import get_strategy
from docvit.model.docvit import DocViT
from docvit.model.upright import judge_upright

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike[str]

Row = TypeVar("Row")

BUDGET = 1280
SURE = 0.997  # probability of a cut from which on a classified file is said to hold several documents
PART_PAGES = 64  # read of a part, if it has more


class Reading(TypedDict, total=False):
    """How documents are read: options of `DocumentClassifier.predict`."""

    max_pages: int | None
    timeout: float
    password: str | None
    words: bool
    ocr_pages: int


class Options(Reading, total=False):
    """Options of a call, those of `DocumentClassifier.predict`."""

    min_score: float | None
    top_k: int | None


class Answers(NamedTuple):
    """What a model says of B documents with N pages.

    Attributes:
        documents: probabilities (B, C).
        pages: what each page token alone says (N, C).
        turned: quarter turns clockwise (N,) by which pages lie turned.
        known: the probability (B,) that a document is of a class that the model knows.
        begins: logits (N,) that a document begins at a page; zeros from a model that cannot tell.
    """

    documents: Tensor
    pages: Tensor
    turned: Tensor
    known: Tensor
    begins: Tensor


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
        if self.device.type == "cpu" and any(weight.dtype == torch.float16 for weight in model.parameters()):
            model = copy.deepcopy(model).float()  # CPUs have no products in half precision
        self.model = model.eval().to(self.device)
        self.classes = model.config.classes or tuple(str(i) for i in range(model.num_classes))
        self.rendering: Rendering = model.config.rendering
        if renderer and renderer != self.rendering.renderer:
            message = "this model was trained on pages drawn by %s and will see pages drawn by %s: expect some loss"
            logger.warning(message, self.rendering.renderer, renderer)
            self.rendering = replace(self.rendering, renderer=renderer)
        # models in another precision run in their own
        self.bf16 = has_fast_bf16(self.device) and model.cls_token.dtype == torch.float32

    @classmethod
    def from_pretrained(
        cls, model: PathLike | None = None, *, device: torch.device | str | None = None, renderer: str | None = None
    ) -> DocumentClassifier:
        """The bundled model (None), or one from a folder or a hub id.

        Raises:
            ModelError: there is no such model, or it cannot be loaded.
        """
        return cls(DocViT.from_pretrained(model), device=device, renderer=renderer)

    @overload
    def __call__(self, data: Data, **options: Unpack[Options]) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, data: Iterable[Data], **options: Unpack[Options]) -> list[Prediction]: ...
    def __call__(self, data: Data | Iterable[Data], **options: Unpack[Options]) -> Prediction | list[Prediction]:
        """Classifies one document, or a list of them; safe to call from several threads.

        A document is a path, the bytes of a file, a binary file object, a PIL image, or a list of page images (PIL
        images, or image files). Any other list, or a column of a data set, is a list of documents: then a list of
        predictions comes back, as from `predict`. Limits of time and memory, and the options, are those of `predict`.

        Raises:
            DocumentError: the one document cannot be classified; the error's class says how.
            ModuleNotFoundError: OCR is asked for and `docvit[ocr]` is not installed.
            ValueError: `data` is no document, or `top_k` is below 1.
        """
        if is_one_document(data):
            return self._alone(cast(Data, data), **options)
        return list(self.predict(cast(Iterable[Data], data), **options))

    def _alone(
        self, data: Data, *, min_score: float | None = None, top_k: int | None = None, **reading: Unpack[Reading]
    ) -> Prediction:
        (row,) = self.classify_pages([read_alone(data, self.rendering, **self.reading(**reading))])
        if row.error is not None:
            raise row.error
        return finished(row, min_score, top_k)

    def predict(
        self,
        data: Data | Iterable[Data],
        *,
        strategy: str = "document",
        max_pages: int | None = 64,
        workers: int = 2,
        timeout: float = 60.0,
        budget: int = BUDGET,
        password: str | None = None,
        words: bool = True,
        ocr_pages: int = 0,
        min_score: float | None = None,
        top_k: int | None = None,
    ) -> Iterator[Prediction]:
        """Classifies a stream of documents, in order; one that cannot be read yields its error and the rest goes on.

        Pages are rendered in worker processes beside the model, a bounded number of documents ahead. On the CPU the
        model runs on several batches at once, on a few cores each: small matrices leave many cores waiting. Do not
        change the model while a stream is open.

        Args:
            data: documents as for a call, read lazily, so it may be endless. Here an image in a list is a document;
                a list in it is one of several pages. A path or another single document stands for itself.
            strategy: the model's own way, `document`, or one that classifies pages (`docvit.inference.strategies`):
                `first`, `second`, `last`, `grid`, `max-confidence`, `soft-vote`, `hard-vote`.
            max_pages: of a longer document only so many are read, spread evenly, first and last always in.
            workers: rendering processes; 0 renders in this one, without `timeout` and without a limit of memory, as is
                done, with a warning, where a process may have no children.
            timeout: seconds after which the rendering of a document is given up.
            budget: patches, blank ones too, after which a batch is complete. About half of them are kept; with many
                more a processor's caches overflow.
            password: opens PDFs that have one.
            words: give the words of the pages to a model that reads words; False for pixels alone.
            ocr_pages: of a document's first so many pages, those without a text layer are read by OCR for their words.
                Each adds `docvit.documents.ocr.OCR_SECONDS` to `timeout`.
            min_score: a document whose `score * known` is lower is unsure; None for the model's own threshold.
            top_k: only the so many most probable classes are in `scores`; None for all.

        Raises:
            ModuleNotFoundError: OCR is asked for and `docvit[ocr]` is not installed.
            ValueError: there is no such strategy, an item is no document, or `top_k` is below 1.
        """
        max_pages = get_strategy(strategy).max_pages or max_pages
        how = self.reading(max_pages=max_pages, timeout=timeout, password=password, words=words, ocr_pages=ocr_pages)
        judge = partial(self.for_stream().classify_pages, strategy=strategy)
        rows = self.stream(data, Prediction, judge, budget=budget, workers=workers, **how)
        yield from (finished(row, min_score, top_k) for row in rows)

    def embed(self, data: Data | Iterable[Data], *, workers: int = 2, **reading: Unpack[Reading]) -> np.ndarray:
        """The model's feature of each document, one row per document, in order: (documents, F) in float32.

        F is `model.num_features`. Rows of documents that cannot be read are NaN, and the log says why.

        Args:
            data: documents as for `predict`; a single one gives one row.
            workers, reading: `max_pages`, `timeout`, `password`, `words` and `ocr_pages` of `predict`.

        Raises:
            ValueError: an item is no document.
        """
        rows = list(self.embeddings(data, workers=workers, **reading))
        for row in rows:
            if row.error is not None:
                logger.warning("no embedding: %s: %s", row.error.kind, row.error)
        nothing = np.full(self.model.num_features, np.nan, np.float32)
        return np.stack([nothing if row.vector is None else row.vector for row in rows]) if rows else nothing[None][:0]

    def embeddings(
        self, data: Data | Iterable[Data], *, workers: int = 2, **reading: Unpack[Reading]
    ) -> Iterator[Embedding]:
        """The same as a stream, in order; a document that cannot be read yields its error and the rest goes on."""
        embed = self.for_stream()._embed
        yield from self.stream(data, Embedding, embed, workers=workers, **self.reading(**reading))

    def stream(
        self,
        data: Data | Iterable[Data],
        kind: Callable[..., Row],
        judge: Callable[[list[PageStack]], Iterable[Row]],
        *,
        budget: int = BUDGET,
        **options: Any,
    ) -> Iterator[Row]:
        """What `judge` makes of batches of documents, one row each, in order; on the CPU several side by side.

        A document that cannot be read is a row `kind(path, error=...)`. `data` and `budget` as for `predict`, which
        raises the same; `options` of `read_documents`.
        """
        documents = data if isinstance(data, list | tuple) or not is_one_document(data) else [data]
        read = read_documents(cast(Iterable[Data], documents), self.rendering, **options)
        streams = cpu_streams() if self.device.type == "cpu" else 1

        def settle(results: list[PageStack | DocumentError]) -> list[Row]:
            rows = iter(judge([r for r in results if isinstance(r, PageStack)]))
            return [next(rows) if isinstance(r, PageStack) else kind(r.path, error=r) for r in results]

        for rows in in_streams(settle, in_batches(read, self.rendering, budget), streams):
            yield from rows

    def reading(
        self,
        *,
        max_pages: int | None = 64,
        timeout: float = 60.0,
        password: str | None = None,
        words: bool = True,
        ocr_pages: int = 0,
    ) -> dict[str, Any]:
        """How documents are read for this model (options of `read_documents`): words only if it reads any."""
        words = words and self.model.config.words > 0
        ocr_pages = pages_for(words, ocr_pages)
        options = {"max_pages": max_pages, "timeout": timeout, "password": password}
        return options | {"words": words, "ocr_pages": ocr_pages}

    def for_stream(self) -> DocumentClassifier:
        """The same for many batches: what each of them would do again is done once."""
        ready = copy.copy(self)
        if self.bf16:
            ready.model = cast_linear(self.model)
        return ready

    def _embed(self, stacks: list[PageStack]) -> list[Embedding]:
        return judge_upright(self._features, stacks)[0]

    @torch.inference_mode()
    def _features(self, stacks: list[PageStack]) -> tuple[list[Embedding], Sequence[Tensor]]:
        """The feature of each document, and how the pages of each lie."""
        batch = self.model.pack(stacks).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.model.forward_features(batch)
            vectors = self.model.forward_head(features, pre_logits=True).float().cpu().numpy()
            turned = self.model.forward_turns(features, batch)
        blank = (batch.page_bounds[batch.document_bounds].diff() == 0).tolist()
        rows = []
        for stack, vector, empty in zip(stacks, vectors, blank, strict=True):
            error = error_of(stack, blank=empty, finite=bool(np.isfinite(vector).all()))
            rows.append(Embedding(stack.path, vector if error is None else None, error))
        return rows, turned.cpu().split([len(stack.pages) for stack in stacks])

    def classify_pages(self, stacks: list[PageStack], *, strategy: str = "document") -> list[Prediction]:
        """Classifies documents whose pages are already read, all in one batch; `strategy` as for `predict`.

        Pages that lie on a side or upside down are turned upright first, where the model can tell.
        """
        used = [get_strategy(strategy).select(stack) for stack in stacks]
        rows, (_, quarters) = judge_upright(partial(self._classify, strategy=strategy), used)
        return [with_turns(*row) for row in zip(rows, used, quarters, strict=True)]

    def _classify(
        self, used: list[PageStack], *, strategy: str = "document", parts: bool = True
    ) -> tuple[list[Prediction], Sequence[Tensor]]:
        """A row for each document, and how its pages lie; `parts`: it may hold several."""
        way = get_strategy(strategy)
        views = [way.views(stack, self.rendering) for stack in used]
        batch = self.model.pack([view for group in views for view in group]).to(self.device)
        scores, by_page, turned, known, boundaries = (part.cpu() for part in self.run(batch, parts=parts))
        sizes = [len(group) for group in views]
        counts = [sum(len(view.pages) for view in group) for group in views]
        of_views = zip(used, views, scores.split(sizes), known.split(sizes), strict=True)
        of_pages = zip(*(x.split(counts) for x in (by_page, batch.page_bounds.diff() == 0, boundaries)), strict=True)
        rows = []
        for (stack, group, votes, sure), (pages, blank, begins) in zip(of_views, of_pages, strict=True):
            row = self._prediction(stack, way.combine(votes), pages, blank, float(sure.mean()))
            if parts and strategy == "document" and self.model.boundaries is not None:
                row = self._with_parts(row, stack, begins, pages)
            if self.model.config.words:
                row = with_words(row, group)
            rows.append(row.judged(self.model.config.calibration(pixels=not row.words_read)[1]))
        return rows, turned.split(counts)

    @torch.inference_mode()
    def run(self, batch: PatchSequence, *, parts: bool = True) -> Answers:
        """What the model says of a batch; without `parts`, no page begins a document."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.model.forward_features(batch)
            logits, by_page = self.model.forward_head(features), self.model.forward_pages(features)
            turned = self.model.forward_turns(features, batch)
            cuts = parts and self.model.boundaries is not None and batch.num_pages > batch.num_documents
            begins = self.model.forward_boundaries(features, batch) if cuts else by_page.new_zeros(len(by_page))
        logits = logits.float()
        known = self.model.known(logits).where(batch.written.to(logits.device), self.model.known(logits, pixels=True))
        return Answers(logits.softmax(1), by_page.float().softmax(1), turned, known, begins.float())

    def _with_parts(self, row: Prediction, stack: PageStack, boundaries: Tensor, by_page: Tensor) -> Prediction:
        """The row with the documents that the file holds, where all pages are read and the model is sure of several."""
        count = len(stack.pages)
        if row.error is not None or count != stack.num_pages or count < 2:
            return row
        _, sure = segment(boundaries.double().numpy(), by_page.double().clamp(min=1e-12).log().numpy())
        begins = [0, *(1 + (sure[1:] >= SURE).nonzero()[0]).tolist()]
        if len(begins) == 1:
            return row
        spans = pairwise([*begins, count])
        parts = [replace(self.label_pages(stack, *span), cut=float(sure[span[0]])) for span in spans]
        note = f"holds {len(parts)} documents: docvit split cuts it"
        return replace(row, parts=parts, note="; ".join(n for n in (row.note, note) if n))

    def label_pages(self, stack: PageStack, begin: int, end: int) -> Part:
        """What the model makes of the pages read from `begin` to `end` as a document of their own.

        No label where all are blank. Of more than `PART_PAGES` so many are read, spread evenly.
        """
        pages = stack.take(begin + i for i in spread(end - begin, PART_PAGES))
        own = pages._replace(indices=[i - stack.indices[begin] for i in pages.indices], failed={})
        (row,), _ = judge_upright(partial(self._classify, parts=False), [own])
        return Part(begin + 1, end, label=row.label, score=row.score)

    def _prediction(self, stack: PageStack, scores: Tensor, by_page: Tensor, blank: Tensor, known: float) -> Prediction:
        """One row from `scores` (C,), `by_page` (N, C) and `blank` (N,); N is 1 where pages are tiled."""
        own_tokens = len(by_page) == len(stack.pages)
        read = [Page(i + 1, blank=bool(blank[n] if own_tokens else blank.all())) for n, i in enumerate(stack.indices)]
        row = Prediction(
            path=stack.path,
            num_pages=stack.num_pages,
            pages_read=len(stack.indices),
            pages=with_failed(read, stack),
            note=note_of(stack),
            error=error_of(stack, blank=bool(blank.all()), finite=bool(scores.isfinite().all())),
        )
        if row.error is not None:
            return row
        best = int(scores.argmax())
        evidence = by_page[:, best] / by_page[:, best].sum().clamp(min=torch.finfo(torch.float32).tiny)
        ranked = scores.sort(descending=True, stable=True)
        if own_tokens:
            top = by_page.max(1)
            alone = zip(read, top.indices.tolist(), top.values.tolist(), evidence.tolist(), strict=True)
            read = [replace(page, label=self.classes[i], score=s, relevance=r) for page, i, s, r in alone]
        return replace(
            row,
            label=self.classes[best],
            score=float(scores[best]),
            known=known,
            scores={self.classes[i]: float(s) for s, i in zip(ranked.values, ranked.indices.tolist(), strict=True)},
            page_relevance=evidence.tolist() if own_tokens else [],
            pages=with_failed(read, stack),
        )
