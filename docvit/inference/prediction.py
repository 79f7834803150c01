"""`Prediction`: what a model makes of a document, as a row for JSON and a table for notebooks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any

import numpy as np

from docvit.documents.errors import DocumentError
from docvit.errors import SettingError

MAX_SHOWN = 5  # classes in a notebook


@dataclass(frozen=True)
class Page:
    """What a model makes of one page.

    Attributes:
        number: 1-based; parts of a page that was cut count as pages.
        label: the class that its class token alone gives; None where the page has none of its own.
        score: the probability of `label`.
        relevance: its share of the evidence for the document's label.
        blank: nothing is written or drawn on it.
        turned: degrees (0, 90, 180 or 270) clockwise by which it lies turned; it was turned back before it was judged.
        failed: it could not be read; `Prediction.note` says why.
    """

    number: int
    label: str | None = None
    score: float | None = None
    relevance: float | None = None
    blank: bool = False
    turned: int = 0
    failed: bool = False


@dataclass(frozen=True)
class Part:
    """One document in a file of several.

    Attributes:
        first, last: its pages, 1-based, both included.
        label: what the model makes of these pages as a document of their own; None where all are blank.
        score: the probability of `label`.
        cut: the probability that a document begins at `first`; 1 at the beginning of the file.
        file: the file that it was written to, if any.
    """

    first: int
    last: int
    label: str | None = None
    score: float | None = None
    cut: float = 1.0
    file: str | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model makes of one document; without a label, `error` says why.

    Attributes:
        path: of the file; for what has none, a name in angle brackets.
        label: the most probable class.
        score: its probability.
        scores: class -> probability, the most probable first; under `top_k` only so many.
        num_pages: pages of the document.
        pages_read: pages that were read (see `max_pages`).
        page_relevance: for each page read, its share of the evidence for `label`: the probability that its class token
            alone gives the label, normalised over the pages. Sums to 1. Empty under the strategy `grid` for more
            than one page, since they have no class tokens of their own.
        error: why there is no label: the file could not be read, all pages are blank, or the model gives no numbers.
        pages: the pages read, and those that failed, in order; under a strategy, of those read the ones that it uses.
        note: what a reader should know, such as why a page failed; empty if nothing.
        parts: the documents that the file holds, where the model is sure that there are several; else empty.
        words_read: number of words on the pages read; None where the model saw pixels alone.
        words_from: `text` if a page read has a text layer, else `ocr` if one was read by OCR, else None.
        known: the probability that the document is of a class that the model knows; 1 for a model that cannot tell.
        unsure: `score * known` is below the model's threshold, or the one asked for (`min_score`).
    """

    path: str
    label: str | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    num_pages: int | None = None
    pages_read: int | None = None
    page_relevance: list[float] = field(default_factory=list)
    error: DocumentError | None = None
    pages: list[Page] = field(default_factory=list)
    note: str = ""
    parts: list[Part] = field(default_factory=list)
    words_read: int | None = None
    words_from: str | None = None
    known: float | None = None
    unsure: bool = False

    @property
    def blank(self) -> bool:
        """Whether it could be read, and every page read is blank."""
        read = [page for page in self.pages if not page.failed]
        return bool(read) and all(page.blank for page in read)

    def top(self, count: int) -> Prediction:
        """The same with the `count` most probable classes alone in `scores`."""
        if count < 1:
            raise SettingError(f"top_k must be at least 1, not {count}")
        return replace(self, scores=dict(list(self.scores.items())[:count]))

    def judged(self, min_score: float) -> Prediction:
        """The same, unsure where `score * known` is below `min_score`."""
        if self.score is None or self.known is None:
            return self
        return replace(self, unsure=self.score * self.known < min_score)

    def as_dict(self) -> dict[str, Any]:
        """The fields of a JSON line; `error` is null or `{"type", "message"}`."""
        answer = ("path", "label", "score", "known", "unsure", "scores")
        reading = ("num_pages", "pages_read", "page_relevance", "note", "words_read", "words_from")
        values = {name: getattr(self, name) for name in answer + reading}
        values |= {name: [asdict(item) for item in getattr(self, name)] for name in ("pages", "parts")}
        return values | {"error": self.error.as_dict() if self.error else None}

    def _repr_html_(self) -> str:
        """A table of the most probable classes, as notebooks show it."""
        facts = [f"{self.pages_read} of {self.num_pages} pages read"] if self.num_pages is not None else []
        if self.words_read:
            facts.append(f"{self.words_read} words from {self.words_from}")
        facts += [_escape(self.note)] if self.note else []
        if self.unsure:
            facts.insert(0, f"<b>unsure</b>: known with probability {self.known:.2f}")
        if self.error is not None:
            facts.insert(0, f"<b>{_escape(self.error.kind)}</b>: {_escape(self.error.message)}")
        rows = "".join(
            f'<tr><td style="text-align:left">{_escape(name)}</td><td>{score:.1%}</td>'
            f'<td style="text-align:left"><meter value="{score:.4f}"></meter></td></tr>'
            for name, score in list(self.scores.items())[:MAX_SHOWN]
        )
        return f"<div><code>{_escape(self.path)}</code><table>{rows}</table><small>{'; '.join(facts)}</small></div>"


@dataclass(frozen=True)
class Embedding:
    """A document's feature, `vector` (F,) in float32; without one, `error` says why."""

    path: str
    vector: np.ndarray | None = None
    error: DocumentError | None = None


def _escape(text: str) -> str:
    """As text in HTML; what cannot be shown, lone surrogates among it, becomes a question mark."""
    return escape("".join(c if c.isprintable() else "?" for c in text))
