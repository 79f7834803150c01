"""Classify multi-page documents with one vision transformer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `X as X` exports X (PEP 484)
    from docvit.data.labels import read_labelled as read_labelled
    from docvit.documents.errors import DocumentError as DocumentError
    from docvit.documents.pages import Document as Document
    from docvit.documents.pages import open_document as open_document
    from docvit.documents.patches import PatchSequence as PatchSequence
    from docvit.documents.patches import pack as pack
    from docvit.documents.rendering import Rendering as Rendering
    from docvit.documents.words import Word as Word
    from docvit.evaluation.compare import compare as compare
    from docvit.inference.classify import DocumentClassifier as DocumentClassifier
    from docvit.inference.explain import explain as explain
    from docvit.inference.fitting import fit as fit
    from docvit.inference.prediction import Part as Part
    from docvit.inference.prediction import Prediction as Prediction
    from docvit.inference.review import review as review
    from docvit.inference.split import split as split
    from docvit.model.attention import attend as attend
    from docvit.model.config import DocViTConfig as DocViTConfig
    from docvit.model.docvit import DocViT as DocViT
    from docvit.model.errors import ModelError as ModelError
    from docvit.model.variants import create_model as create_model
    from docvit.training.loop import TrainSettings as TrainSettings
    from docvit.training.recipe import Recipe as Recipe
    from docvit.training.supervised import train_documents as train_documents

__version__ = "0.1.0"

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

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
