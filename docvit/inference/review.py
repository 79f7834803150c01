"""One HTML page to look through predictions and correct them: no server, no network."""

from __future__ import annotations

import hashlib
import io
import json
import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from docvit.documents.errors import DocumentError
from docvit.documents.pages import PageStack
from docvit.documents.workers import read_documents
from docvit.files import replaced
from docvit.inference.classify import DocumentClassifier
from docvit.inference.explain import Explanation, explain
from docvit.inference.prediction import Page, Prediction

MAX_BYTES = 22_000_000  # of all documents together; the rest of 25 MB is for what does not shrink
MAX_WORDS = 10  # shown of a document
MAX_SCORES = 5
SIZES = ((512, 70), (256, 60), (256, 35), (192, 35), (144, 30), (96, 25))  # longer side of a picture, and its quality
LEAST_DENSITY = 0.05  # bytes per pixel of a written page; a size at which pages would need more room is not tried


def review(
    classifier: DocumentClassifier,
    paths: Iterable[str | os.PathLike[str]],
    file: str | os.PathLike[str],
    *,
    max_pages: int | None = 64,
    workers: int = 2,
    timeout: float = 60.0,
    password: str | None = None,
    words: bool = True,
    ocr_pages: int = 0,
) -> list[Prediction]:
    """Classifies and explains documents, and writes a page in which a person corrects their labels.

    The page holds everything that it shows, at most `MAX_BYTES` of it: the more documents, the smaller the pictures of
    their pages. It exports labels as a CSV with the columns `path` (absolute) and `label`. The options are those of
    `DocumentClassifier.predict`. A path that is given twice is shown once.

    Returns:
        the predictions, in order; a document that cannot be read has its error, on the page, too.

    Raises:
        OSError: the file cannot be written.
    """
    unique = list({os.path.abspath(path): os.fspath(path) for path in paths}.values())
    how = classifier.reading(max_pages=max_pages, timeout=timeout, password=password, words=words, ocr_pages=ocr_pages)
    read = read_documents(unique, classifier.rendering, workers=workers, **how)
    predictions: list[Prediction] = []
    documents: list[dict[str, Any]] = []
    left = MAX_BYTES
    for result in tqdm(read, total=len(unique), unit="doc", disable=None):
        found = _look_at(classifier, result)
        documents.append(_document(found, left // (len(unique) - len(documents))))
        predictions.append(found.prediction)
        left = max(0, left - len(json.dumps(documents[-1])))
    write_page(file, documents, classifier.classes)
    return predictions


def write_page(file: str | os.PathLike[str], documents: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """The page of these documents, as one HTML file."""
    from jinja2 import Environment, PackageLoader

    # text that people chose stands in the data alone; as ASCII, names that are no valid Unicode pass unharmed
    environment = Environment(loader=PackageLoader("docvit", "inference"), autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": True, "separators": (",", ":")}
    page = hashlib.sha256("\0".join(d["file"] for d in documents).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    data = {"id": page, "classes": list(classes), "documents": list(documents)}
    html = environment.get_template("review.html").render(data=data)
    with replaced(Path(file)) as partial:
        partial.write_text(html, encoding="utf-8")


def _look_at(classifier: DocumentClassifier, read: PageStack | DocumentError) -> Explanation:
    """What the model makes of a document, and why; of one that has no label, what there is."""
    if isinstance(read, DocumentError):
        return Explanation(Prediction(read.path, error=read), [], [])
    try:
        return explain(classifier, read)
    except DocumentError:
        (prediction,) = classifier.classify_pages([read])
        return Explanation(prediction, [np.asarray(page) for page in read.pages], [])


def _document(found: Explanation, room: int) -> dict[str, Any]:
    """What the page holds of a document, in about `room` bytes."""
    row, pages = found.prediction, [_page(page) for page in found.prediction.pages]
    entry: dict[str, Any] = {
        "path": row.path,
        "file": os.path.abspath(row.path),
        "label": row.label,
        "score": _short(row.score),
        "scores": [[name, _short(score)] for name, score in list(row.scores.items())[:MAX_SCORES]],
        "num_pages": row.num_pages,
        "note": row.note,
        "error": row.error and [row.error.kind, row.error.message],
        "words": [
            [w.text[:60], w.page, [round(1000 * side) for side in w.box], _short(w.relevance)]
            for w in found.words[:MAX_WORDS]
        ],
        "pages": pages,
        "known": _short(row.known),
        "unsure": row.unsure,
        "parts": [[part.first, part.last, part.label, _short(part.score)] for part in row.parts],
    }
    read = [page for page, of in zip(pages, row.pages, strict=True) if not of.failed]
    for page, relevance in zip(read, found.relevance, strict=False):
        page |= _patches(relevance)
    pictures = _pictures(found.pages, 3 * (room - len(json.dumps(entry))) // 4)  # 4 letters for 3 bytes
    for page, picture, pixels in zip(read, pictures, found.pages, strict=False):
        page |= {"picture": b64encode(picture).decode(), "aspect": round(pixels.shape[1] / pixels.shape[0], 3)}
    return entry


def _page(page: Page) -> dict[str, Any]:
    facts = {
        "number": page.number,
        "label": page.label,
        "score": _short(page.score),
        "share": _short(page.relevance),
        "blank": page.blank,
        "failed": page.failed,
        "turned": page.turned,
    }
    return {name: value for name, value in facts.items() if value}


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 3)


def _patches(relevance: NDArray[np.float32]) -> dict[str, Any]:
    """The evidence of the patches of a page in row order, a hexadecimal digit each; nothing where none has any."""
    if not np.nanmax(relevance, initial=0) > 0:
        return {}
    digits = np.rint(15 * np.nan_to_num(relevance)).astype(int).flatten().tolist()
    return {"patches": "".join(f"{digit:x}" for digit in digits), "columns": relevance.shape[1]}


def _pictures(pages: Sequence[NDArray[np.uint8]], room: int) -> list[bytes]:
    """The pages as WebP, in about `room` bytes; the first, which stands for the document, may take half of them."""
    first = _fitting(pages[:1], room // 2 if len(pages) > 1 else room)
    first = first or [_picture(page, *SIZES[-1]) for page in pages[:1]]
    return first + _fitting(pages[1:], room - sum(map(len, first)))


def _fitting(pages: Sequence[NDArray[np.uint8]], room: int) -> list[bytes]:
    """All pages at the best size at which they fit; at the smallest, as many of them as do."""
    pictures: list[bytes] = []
    for size, quality in SIZES:
        hopeless = LEAST_DENSITY * sum(_pixels(page, size) for page in pages) > room
        if hopeless and size > SIZES[-1][0]:
            continue
        pictures, used = [], 0
        for page in pages:
            pictures.append(_picture(page, size, quality))
            used += len(pictures[-1])
            if used > room:
                break
        else:
            return pictures
    return pictures[:-1]


def _pixels(page: NDArray[np.uint8], size: int) -> float:
    height, width = page.shape[:2]
    return height * width * min(1.0, size / max(height, width)) ** 2


def _picture(page: NDArray[np.uint8], size: int, quality: int) -> bytes:
    picture, file = Image.fromarray(page), io.BytesIO()
    picture.thumbnail((size, size))
    picture.save(file, "WEBP", quality=quality, method=2)
    return file.getvalue()
