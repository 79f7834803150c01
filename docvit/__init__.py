"""Classify multi-page documents with one vision transformer."""

from docvit.documents.errors import DocumentError
from docvit.documents.pages import Document, open_document
from docvit.documents.patches import PatchSequence, pack
from docvit.documents.rendering import Rendering
from docvit.inference.classify import DocumentClassifier, Prediction
from docvit.model.attention import attend
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.pretrained import ModelError
from docvit.model.variants import create_model

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
