"""A linear classifier of the words of whole documents, which becomes a part of a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from tqdm import tqdm

from docvit.data.labels import LabelledDocuments
from docvit.data.sampling import balance
from docvit.documents.cache import CachedDocument
from docvit.documents.hashing import hash_ngrams
from docvit.model.docvit import DocViT
from docvit.model.words import WordEmbedding

STRENGTH = 30.0  # inverse weight of the penalty


def count_words(model: DocViT, files: Iterable[Path]) -> None:
    """Sets the inverse document frequencies of a model's word buckets from rendered training documents.

    Copies of a document, which share one file, count once. A model without words, or one whose words have been counted
    before, stays as it is.
    """
    if model.words is None or model.words.counted:
        return
    each_once = list(dict.fromkeys(files))
    frequencies = torch.zeros(model.words.buckets)
    for ngrams in _ngrams(each_once):
        frequencies[ngrams.remainder(model.words.buckets).unique()] += 1
    model.words.set_frequencies(frequencies, len(each_once))


def _ngrams(files: Sequence[Path]) -> Iterator[Tensor]:
    """The hashed n-grams (G,) of each rendered document."""
    for file in tqdm(files, desc="reading words", unit="doc", leave=False, disable=None):
        document = CachedDocument.open(file)
        texts = [text for index in document.indices for text in document.load_words(index).texts]
        yield torch.from_numpy(hash_ngrams(texts)[0])


def tf_idf(words: WordEmbedding, ngrams: Tensor, bounds: Tensor) -> sparse.csr_matrix:
    """(S, buckets) TF-IDF of the S bags that `bounds` (S + 1,) cut out of n-grams (G,), as `words` weighs them."""
    found = words.weigh(ngrams, bounds)
    weights, bags, ids = (cast(Tensor, x).cpu().numpy() for x in (found.weights, found.bags, found.ids))
    return sparse.csr_matrix((weights, (bags, ids)), (len(bounds) - 1, words.buckets))


def add_text_classifier(model: DocViT, data: LabelledDocuments, files: Mapping[str, Path], *, weight: float) -> DocViT:
    """A copy of a trained model to whose logits those of a text classifier are added, `weight` times.

    The text classifier is a logistic regression on the TF-IDF of all n-grams of a document, with `balance`d documents.
    What it adds is linear in them, so that its weights are the table `DocViTConfig.document_words`. It has no
    intercept: a document without words keeps the logits that it had.

    A model that reads no words, or that has such a table already, is returned as it is; so is every model where no
    document has words.

    Args:
        files: rendered pages of the documents by path.
    """
    words = model.words
    if words is None or words.of_documents is not None or not weight:
        return model
    documents = _ngrams([files[path] for path in data.paths])
    rows = [tf_idf(words, ngrams.to(words.idf.device), torch.tensor([0, len(ngrams)])) for ngrams in documents]
    weights = sparse.vstack(rows, "csr")
    written = np.flatnonzero(weights.getnnz(1))
    labels = np.array(data.labels)[written]
    if len(np.unique(labels)) < 2:
        return model
    sampled = balance(data)[written]
    regression = LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=1000, tol=1e-3)
    regression.fit(weights[written], labels, sampled / sampled.mean())
    table = np.zeros((words.buckets, model.num_classes))
    table[:, regression.classes_] = per_class(regression.coef_).T
    return _with_table(model, weight * table)


def per_class(coefficients: np.ndarray) -> np.ndarray:
    """Coefficients (C, ...) of each class; of two classes scikit-learn keeps the difference alone (1, ...)."""
    return coefficients if len(coefficients) > 1 else np.concatenate([-coefficients, coefficients]) / 2


def _with_table(model: DocViT, table: np.ndarray) -> DocViT:
    """A copy that adds to the logits the rows of `table` (buckets, C) of a document's n-grams."""
    count = model.num_classes
    result = model.adapt(document_words=count).train(model.training).to(model.cls_token.device)
    result.config = replace(model.config, document_words=count)  # with its thresholds, which come from other models
    old, new = cast(nn.Linear, model.head), cast(nn.Linear, result.head)
    with torch.no_grad():
        new.weight.copy_(torch.cat([old.weight, torch.eye(count).to(old.weight)], 1))
        new.bias.copy_(old.bias)
        assert result.words is not None
        assert result.words.of_documents is not None
        result.words.of_documents.weight.copy_(torch.from_numpy(table))
    return result
