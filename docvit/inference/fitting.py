"""`docvit.fit`: a classifier for own classes from a few examples each."""

from __future__ import annotations

import os
from typing import Any

from docvit.data.labels import LabelledDocuments
from docvit.inference.classify import DocumentClassifier
from docvit.training.few_shot import fit_documents


def fit(
    data: LabelledDocuments | str | os.PathLike[str], output: str | os.PathLike[str] | None = None, **options: Any
) -> DocumentClassifier:
    """A classifier for the classes of `data`, from one example per class on, in seconds.

    Args:
        data: a folder per class, a CSV with the columns path and label, or what `read_labelled` gives.
        output: model folder to write; None for none.
        options: `model`, `add`, `skip_unreadable`, `device`, `cache`, `workers`, `password` and `ocr_pages` of
            `docvit.training.few_shot.fit_documents`, which also says how sure the classifier is of each class.

    Raises:
        DataError: examples that cannot be read, or of one class only.
        ModelError: there is no such model, or `output` holds no examples to add to.
        TrainingError: `output` holds another model.
        ModuleNotFoundError: OCR is asked for and `docvit[ocr]` is not installed.
        ValueError: `add` without `output`, or with another model.
    """
    model, _ = fit_documents(data, output, **options)
    return DocumentClassifier(model, device=options.get("device"))
