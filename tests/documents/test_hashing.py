"""Feature hashing of words, against scikit-learn's n-grams."""

from __future__ import annotations

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from docvit.documents.hashing import MAX_LETTERS, NGRAMS, hash_ngrams

WORDS = ["Invoice", "No.", "a", "42", "Überweisung", "請求書", "x" * 60]


def ngrams(word):
    analyse = CountVectorizer(analyzer="char_wb", ngram_range=(NGRAMS[0], NGRAMS[-1])).build_analyzer()
    return analyse(word[:MAX_LETTERS])


def test_every_word_has_as_many_hashes_as_it_has_ngrams():
    _, words = hash_ngrams(WORDS)
    assert np.bincount(words).tolist() == [len(ngrams(word)) for word in WORDS]


def test_two_ngrams_have_one_hash_if_they_are_equal_and_else_two():
    hashes, _ = hash_ngrams(WORDS)
    assert len(set(hashes.tolist())) == len({gram for word in WORDS for gram in ngrams(word)})
    alone = np.concatenate([hash_ngrams([word])[0] for word in WORDS])
    assert sorted(alone) == sorted(hashes)  # whatever other words there are


def test_case_does_not_count():
    assert np.array_equal(hash_ngrams(["TOTAL"])[0], hash_ngrams(["total"])[0])


def test_hashes_are_the_same_on_every_machine():
    # worked out by hand in unbounded integers from the formulas of the module: h = n; h = h * m + code; fmix32; / 2
    def reference(gram):
        value = len(gram)
        for letter in gram:
            value = (value * 0x9E3779B1 + ord(letter)) % 2**32
        value = (value ^ (value >> 16)) * 0x85EBCA6B % 2**32
        value = (value ^ (value >> 13)) * 0xC2B2AE35 % 2**32
        return (value ^ (value >> 16)) >> 1

    hashes, _ = hash_ngrams(["ab"])
    assert sorted(hashes.tolist()) == sorted(map(reference, [" a", "ab", "b ", " ab", "ab ", " ab "]))
    assert hashes.max() < 2**31


def test_hashes_spread_evenly_over_buckets():
    hashes, _ = hash_ngrams([f"{i:x}" for i in range(20_000)])
    counts = np.bincount(np.unique(hashes) % 64, minlength=64)
    expected = counts.mean()
    assert abs(counts - expected).max() < 6 * expected**0.5


def test_no_words_have_no_hashes():
    hashes, words = hash_ngrams([])
    assert len(hashes) == len(words) == 0
