"""Classify multi-page documents with one vision transformer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docvit.data.labels import read_labelled
    from docvit.documents.errors import DocumentError
    from docvit.documents.pages import Document, open_document
    from docvit.documents.patches import PatchSequence, pack
    from docvit.documents.rendering import Rendering
    from docvit.documents.words import Word
    from docvit.evaluation.compare import compare
    from docvit.inference.classify import DocumentClassifier
    from docvit.inference.explain import explain
    from docvit.inference.fitting import fit
    from docvit.inference.prediction import Part, Prediction
    from docvit.inference.review import review
    from docvit.inference.split import split
    from docvit.model.attention import attend
    from docvit.model.config import DocViTConfig
    from docvit.model.docvit import DocViT
    from docvit.model.errors import ModelError
    from docvit.model.variants import create_model
    from docvit.training.loop import TrainSettings
    from docvit.training.recipe import Recipe
    from docvit.training.supervised import train_documents

__version__ = "0.1.0"

__all__ = [
    "DocViT",
    "DocViTConfig",
    "Document",
    "DocumentClassifier",
    "DocumentError",
    "ModelError",
    "Part",
    "PatchSequence",
    "Prediction",
    "Recipe",
    "Rendering",
    "TrainSettings",
    "Word",
    "attend",
    "compare",
    "create_model",
    "explain",
    "fit",
    "open_document",
    "pack",
    "read_labelled",
    "review",
    "split",
    "train_documents",
]

# Where each name lives. It is imported when it is first asked for: torch takes seconds, and `docvit --help` needs none.
_MODULES = {
    "DocViT": "model.docvit",
    "DocViTConfig": "model.config",
    "Document": "documents.pages",
    "DocumentClassifier": "inference.classify",
    "DocumentError": "documents.errors",
    "ModelError": "model.errors",
    "Part": "inference.prediction",
    "PatchSequence": "documents.patches",
    "Prediction": "inference.prediction",
    "Recipe": "training.recipe",
    "Rendering": "documents.rendering",
    "TrainSettings": "training.loop",
    "Word": "documents.words",
    "attend": "model.attention",
    "compare": "evaluation.compare",
    "create_model": "model.variants",
    "explain": "inference.explain",
    "fit": "inference.fitting",
    "open_document": "documents.pages",
    "pack": "documents.patches",
    "read_labelled": "data.labels",
    "review": "inference.review",
    "split": "inference.split",
    "train_documents": "training.supervised",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
