"""Document frequencies of hashed words, counted before a model that reads words is trained."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from docvit.documents.cache import CachedDocument
from docvit.documents.hashing import hash_ngrams
from docvit.model.docvit import DocViT


def count_words(model: DocViT, files: Iterable[Path]) -> None:
    """Sets the inverse document frequencies of a model's word buckets from rendered training documents.

    Copies of a document, which share one file, count once. A model without words, or one whose words have been counted
    before, stays as it is.
    """
    if model.words is None or model.words.counted:
        return
    each_once = list(dict.fromkeys(files))
    frequencies = torch.zeros(model.words.buckets)
    for file in tqdm(each_once, desc="counting words", unit="doc", leave=False, disable=None):
        document = CachedDocument.open(file)
        texts = [text for index in document.indices for text in document.load_words(index).texts]
        frequencies[torch.from_numpy(hash_ngrams(texts)[0]).remainder(model.words.buckets).unique()] += 1
    model.words.set_frequencies(frequencies, len(each_once))
