"""Optical character recognition of pages without a text layer, by RapidOCR on onnxruntime (`docvit[ocr]`).

Its wheel carries its weights: nothing is fetched. A page of 1,100 pixels takes 1 to 4 seconds on one thread.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from docvit.documents.rendering import Box
from docvit.documents.words import Words, clean_words

OCR_SIZE = 1100  # pixels, the longer side of a page

OCR_SECONDS = 15.0  # that a document may take longer for each page that may be read

logger = logging.getLogger(__name__)

_MODEL_FILES = {"Det": "*_det_*.onnx", "Cls": "*_cls_*.onnx", "Rec": "*_rec_*.onnx"}


def require_ocr() -> None:
    """Raise ModuleNotFoundError where the extra is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("rapidocr", "onnxruntime")):
        raise ModuleNotFoundError('reading scans needs RapidOCR: pip install "docvit[ocr]"')


def pages_for(reads_words: bool, ocr_pages: int) -> int:
    """How many of a document's pages are read for a model: none, with a warning, for one that reads no words."""
    if ocr_pages and not reads_words:
        logger.warning("the model is given no words: nothing is read by OCR")
    return ocr_pages if reads_words else 0


def ocr_words(page: Image.Image) -> Words:
    """The words of a drawn page. Raises ModuleNotFoundError where the extra is not installed."""
    found = _engine()(np.asarray(page.convert("RGB"))[:, :, ::-1])  # OpenCV's order of channels
    if found.txts is None or found.boxes is None:
        return Words()
    words = [word for line in zip(found.txts, found.boxes, strict=True) for word in _cut(*line)]
    boxes = np.array([box for _, box in words], float).reshape(-1, 4) / np.array([*page.size] * 2)
    return clean_words([text for text, _ in words], boxes, "ocr")


def _cut(line: str, corners: np.ndarray) -> Iterator[tuple[str, Box]]:
    """The words of a line with `corners` (4, 2) in pixels; its box is cut in proportion to characters."""
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    for match in re.finditer(r"\S+", line):
        start, end = match.start() / len(line), match.end() / len(line)
        if right - left >= bottom - top:
            yield match[0], (left + start * (right - left), top, left + end * (right - left), bottom)
        else:
            yield match[0], (left, top + start * (bottom - top), right, top + end * (bottom - top))


@functools.cache
def _engine() -> Any:
    """RapidOCR on one thread, silent, with the models of its wheel by their paths, so that it never fetches any."""
    require_ocr()
    logging.getLogger("RapidOCR").setLevel(logging.CRITICAL)
    import rapidocr

    folder = Path(rapidocr.__file__).parent / "models"
    params: dict[str, Any] = {
        "Global.log_level": "critical",
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
    }
    for part, pattern in _MODEL_FILES.items():
        models = sorted(folder.glob(pattern))
        if not models:
            raise ModuleNotFoundError(f'RapidOCR has no {part} model in {folder}: pip install -U "docvit[ocr]"')
        params[f"{part}.model_path"] = str(models[-1])
    import cv2

    cv2.setNumThreads(1)
    return rapidocr.RapidOCR(params=params)
