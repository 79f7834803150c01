"""What a row says besides the model's answers: words, turned and failed pages, notes."""

from __future__ import annotations

from dataclasses import replace

from docvit.documents.errors import DocumentError, Empty, Unsupported
from docvit.documents.pages import PageStack
from docvit.inference.prediction import Page, Prediction
from docvit.model.errors import NO_NUMBERS


def finished(row: Prediction, min_score: float | None, top_k: int | None) -> Prediction:
    """The row judged by another threshold, and with fewer scores, where these are asked for."""
    row = row if min_score is None else row.judged(min_score)
    return row if top_k is None else row.top(top_k)


def with_turns(row: Prediction, stack: PageStack, quarters: list[int]) -> Prediction:
    """The row, whose pages say by how many degrees they were turned."""
    degrees = {index + 1: 90 * k for index, k in zip(stack.indices, quarters, strict=True)}
    return replace(row, pages=[replace(page, turned=degrees.get(page.number, 0)) for page in row.pages])


def with_words(row: Prediction, seen: list[PageStack]) -> Prediction:
    """The row with the number and the source of the words that the model has seen."""
    words = [page for view in seen for page in view.words]  # a page without any has an entry, too
    if not words:
        return row
    together = seen[0]._replace(words=words)
    return replace(row, words_read=together.words_read, words_from=together.words_from)


def with_failed(read: list[Page], stack: PageStack) -> list[Page]:
    """The pages read and those that could not be, in order."""
    return sorted([*read, *(Page(i + 1, failed=True) for i in stack.failed)], key=lambda page: page.number)


def error_of(stack: PageStack, *, blank: bool, finite: bool) -> DocumentError | None:
    """Why the model has no answer for a document that could be read, if it has none."""
    if blank:
        return Empty(stack.path, "every page is blank: nothing is written or drawn on it")
    return None if finite else Unsupported(stack.path, NO_NUMBERS)


def note_of(stack: PageStack) -> str:
    """The document's note, and why pages or their OCR failed; pages that failed alike stand together."""
    parts = [stack.note]
    for what, failed in (("could not be read", stack.failed), ("could not be read by OCR", stack.ocr_failed)):
        numbers: dict[str, list[str]] = {}
        for index, message in failed.items():
            numbers.setdefault(message, []).append(str(index + 1))
        parts += [f"page {', '.join(pages)} {what}: {message}" for message, pages in numbers.items()]
    return "; ".join(part for part in parts if part)
