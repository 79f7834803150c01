"""Classify multi-page documents with one vision transformer."""

from docvit.data.labels import read_labelled
from docvit.documents.errors import DocumentError
from docvit.documents.pages import Document, open_document
from docvit.documents.patches import PatchSequence, pack
from docvit.documents.rendering import Rendering
from docvit.evaluation.compare import compare
from docvit.inference.classify import DocumentClassifier, Prediction
from docvit.inference.explain import explain
from docvit.model.attention import attend
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.pretrained import ModelError
from docvit.model.variants import create_model
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from docvit.training.supervised import train_documents

__all__ = [
    "DocViT",
    "DocViTConfig",
    "Document",
    "DocumentClassifier",
    "DocumentError",
    "ModelError",
    "PatchSequence",
    "Prediction",
    "Recipe",
    "Rendering",
    "TrainSettings",
    "attend",
    "compare",
    "create_model",
    "explain",
    "open_document",
    "pack",
    "read_labelled",
    "train_documents",
]
