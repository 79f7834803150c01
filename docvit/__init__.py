"""Classify multi-page documents with one vision transformer."""

from docvit.attention import attend
from docvit.classify import DocumentClassifier, Prediction
from docvit.model import DocViT, DocViTConfig
from docvit.pages import Document, DocumentError, Rendering, open_document
from docvit.patches import PatchSequence, pack
from docvit.variants import create_model
from docvit.weights import ModelError

__all__ = [
    "DocViT",
    "DocViTConfig",
    "Document",
    "DocumentClassifier",
    "DocumentError",
    "ModelError",
    "PatchSequence",
    "Prediction",
    "Rendering",
    "attend",
    "create_model",
    "open_document",
    "pack",
]
