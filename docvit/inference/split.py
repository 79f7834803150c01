"""`split`: a file that holds several documents becomes its parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from docvit.documents.errors import DocumentError, Empty, TooLarge
from docvit.documents.pages import PageStack
from docvit.documents.patches import PatchSequence
from docvit.documents.sources import Data
from docvit.errors import SettingError
from docvit.inference.classify import PART_PAGES, DocumentClassifier
from docvit.inference.prediction import Part
from docvit.inference.rows import error_of, note_of
from docvit.inference.segments import segment
from docvit.model.docvit import Features, Stemmed
from docvit.model.errors import ModelError
from docvit.model.upright import judge_upright

MOST_PAGES = 2000  # of a file; its pages take 300 MB as they are read

TIMEOUT = 600.0  # seconds that reading a file may take

WINDOW, MARGIN = 256, 16  # pages that the model sees at once, and those at an edge within a file that do not count


@dataclass(frozen=True)
class Split:
    """The parts of one file; without any, `error` says why. `note` says what a reader should know, if anything."""

    path: str
    num_pages: int | None = None
    parts: list[Part] = field(default_factory=list)
    error: DocumentError | None = None
    note: str = ""

    @property
    def blank(self) -> bool:
        """Whether it could be read, and every page is blank."""
        return isinstance(self.error, Empty) and self.num_pages is not None

    def as_dict(self) -> dict[str, Any]:
        """The fields of a JSON line; `error` is null or `{"type", "message"}`."""
        values = {"path": self.path, "num_pages": self.num_pages, "parts": [asdict(part) for part in self.parts]}
        return values | {"note": self.note, "error": self.error.as_dict() if self.error else None}


def split(
    data: Data,
    *,
    model: DocumentClassifier | str | Path | None = None,
    min_score: float = 0.0,
    drop_blank: bool = False,
    words: bool = True,
    ocr_pages: int = 0,
    password: str | None = None,
) -> list[Part]:
    """The documents that one file holds, in order.

    Args:
        data: a path, or another document as for `DocumentClassifier`.
        model: a classifier, or a folder or hub id of a model; the bundled model by default.
        min_score: only cuts that are at least so probable are made.
        drop_blank: blank pages before and after a document are in no part.
        words: read the words of the pages, too; False for pixels alone.
        ocr_pages: of the file's first so many pages, those without a text layer are read by OCR (`docvit[ocr]`).
        password: opens a PDF that has one.

    Raises:
        DocumentError: the file cannot be read, has more than 2,000 pages, or all of them are blank.
        ModelError: the model is none, or has not learnt where documents begin.
        ModuleNotFoundError: OCR is asked for and `docvit[ocr]` is not installed.
    """
    classifier = model if isinstance(model, DocumentClassifier) else DocumentClassifier.from_pretrained(model)
    reading: dict[str, Any] = {"words": words, "ocr_pages": ocr_pages, "password": password}
    (result,) = split_files(classifier, [data], min_score=min_score, drop_blank=drop_blank, workers=1, **reading)
    if result.error is not None:
        raise result.error
    return result.parts


def split_files(
    classifier: DocumentClassifier,
    files: Iterable[Data],
    *,
    min_score: float = 0.0,
    drop_blank: bool = False,
    words: bool = True,
    ocr_pages: int = 0,
    password: str | None = None,
    workers: int = 2,
) -> Iterator[Split]:
    """Splits a stream of files, in order; one that cannot be read yields its error and the rest goes on.

    Raises:
        ModelError: the model has not learnt where documents begin.
        ModuleNotFoundError: OCR is asked for and `docvit[ocr]` is not installed.
        ValueError: `min_score` lies outside 0..1.
    """
    if not 0 <= min_score <= 1:
        raise SettingError(f"min_score is a probability from 0 to 1, not {min_score}")
    if classifier.model.boundaries is None:
        raise ModelError("the model has not learnt where documents begin: train one with docvit train --packets 1")
    reading: dict[str, Any] = {"words": words, "ocr_pages": ocr_pages, "password": password}
    options = classifier.reading(max_pages=MOST_PAGES, timeout=TIMEOUT, **reading)
    cut = partial(_split, classifier.for_stream(), min_score=min_score, drop_blank=drop_blank)
    return classifier.stream(files, Split, partial(map, cut), workers=workers, ahead=0, cut_pages=False, **options)


def _split(classifier: DocumentClassifier, stack: PageStack, *, min_score: float, drop_blank: bool) -> Split:
    if stack.num_pages > MOST_PAGES:
        problem = f"it has {stack.num_pages:,} pages, and at most {MOST_PAGES:,} are split: cut it into several files"
        return Split(stack.path, stack.num_pages, error=TooLarge(stack.path, problem))
    (seen,), ((stack,), _) = judge_upright(lambda stacks: look(classifier, stacks[0]), [stack])
    blank = seen.blank
    finite = not np.isnan(seen.boundaries).any() and not np.isnan(seen.kinds).any()
    error = error_of(stack, blank=bool(blank.all()), finite=finite)
    result = Split(stack.path, stack.num_pages, error=error, note=note_of(stack))
    if error is not None:
        return result
    begins, sure = segment(seen.boundaries, seen.kinds)
    begins = [begin for begin in begins if begin == 0 or sure[begin] >= min_score]
    empty = {stack.indices[i] for i in np.flatnonzero(blank)}
    parts = []
    spans = list(pairwise([*begins, len(blank)]))
    for (begin, end), part in zip(spans, label_parts(classifier, stack, seen, spans), strict=True):
        first = stack.indices[begin] + 1 if begin else 1  # a page that failed goes with those before
        last = stack.indices[end] if end < len(stack.indices) else stack.num_pages
        if drop_blank:  # a page that failed is none
            written = [number for number in range(first, last + 1) if number - 1 not in empty]
            if not written:
                continue
            first, last = written[0], written[-1]
        parts.append(replace(part, first=first, last=last, cut=float(sure[begin])))
    return replace(result, parts=parts)


class Seen(NamedTuple):
    """What the model sees in a file of N pages.

    Attributes:
        boundaries: (N,) logits that a document begins at a page.
        kinds: (N, C) log-probabilities of the kinds of each page.
        blank: (N,) whether a page is blank.
        whole: the packed pages, what the stem makes of them, and their features, where all were seen at once.
    """

    boundaries: np.ndarray
    kinds: np.ndarray
    blank: np.ndarray
    whole: tuple[PatchSequence, Stemmed, Features] | None = None


@torch.inference_mode()
def look(classifier: DocumentClassifier, stack: PageStack) -> tuple[list[Seen], list[Tensor]]:
    """What the model sees in one file, and how its pages lie (`DocViT.forward_turns`).

    Long files are read in windows that overlap; pages keep their page indices.
    """
    model, count, found = classifier.model, len(stack.pages), []
    for begin in range(0, count, WINDOW - 2 * MARGIN):
        window = range(max(0, begin - MARGIN), min(count, begin + WINDOW - MARGIN))
        batch = model.pack([stack.take(window)]).to(classifier.device)
        with torch.autocast(classifier.device.type, torch.bfloat16, enabled=classifier.bf16):
            stem = model.forward_stem(batch)
            features = model.forward_features(batch, stem)
            logits, kinds = model.forward_boundaries(features, batch), model.forward_pages(features)
            turned = model.forward_turns(features, batch)
        own = slice(begin - window.start, min(count, begin + WINDOW - 2 * MARGIN) - window.start)
        parts = logits.double(), kinds.double().log_softmax(1), batch.page_bounds.diff() == 0, turned
        found.append([part[own].cpu() for part in parts])
    boundaries, by_page, blank, turns = (torch.cat(parts) for parts in zip(*found, strict=True))
    whole = (batch, stem, features) if len(window) == count else None
    return [Seen(boundaries.numpy(), by_page.numpy(), blank.numpy(), whole)], [turns]


@torch.inference_mode()
def label_parts(
    classifier: DocumentClassifier, stack: PageStack, seen: Seen, spans: Sequence[tuple[int, int]]
) -> list[Part]:
    """What `DocumentClassifier.label_pages` says of each part of a file, of all at once where all were seen at once."""
    if seen.whole is None:
        return [classifier.label_pages(stack, *span) for span in spans]
    model, (batch, stem, features), parts = classifier.model, seen.whole, []
    with torch.autocast(classifier.device.type, torch.bfloat16, enabled=classifier.bf16):
        if len(spans) > 1:
            batch = batch.cut([begin for begin, _ in spans])
            features = model.forward_features(batch, stem)
        scores, turned = model.forward_head(features).float().softmax(1).cpu(), model.forward_turns(features, batch)
    quarters = turned.cpu().split([end - begin for begin, end in spans])
    for (begin, end), of_part, lying in zip(spans, scores, quarters, strict=True):
        if seen.blank[begin:end].all():
            parts.append(Part(begin + 1, end))
        elif end - begin > PART_PAGES or lying.any() or not of_part.isfinite().all():
            parts.append(classifier.label_pages(stack, begin, end))
        else:
            best = int(of_part.argmax())
            parts.append(Part(begin + 1, end, label=classifier.classes[best], score=float(of_part[best])))
    return parts
