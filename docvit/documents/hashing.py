"""Feature hashing of words: a word becomes the hashes of its character n-grams.

No vocabulary is kept: a hash taken modulo a number of buckets is a row of an embedding table (Weinberger et al.,
"Feature Hashing for Large Scale Multitask Learning", arXiv 0902.2206). Character n-grams find a word again in another
inflection, and behind an error of OCR.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NGRAMS = (2, 3, 4, 5)
MAX_LETTERS = 40  # of a word; what follows is left out

_SPACE = ord(" ")
_MULTIPLIER = np.uint32(0x9E3779B1)


def hash_ngrams(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The hashed n-grams of words: hashes (G,) in 0 .. 2^31 - 1, and for each the index of its word (G,).

    An n-gram lies within a word and the space before and after it ("char_wb" in scikit-learn), in lower case. The
    hashes are the same on every machine.

    Args:
        texts: words, without white space in them.
    """
    if not texts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    letters = f" {' '.join(text[:MAX_LETTERS] for text in texts)} ".lower()
    codes = np.frombuffer(letters.encode("utf-32-le", "surrogatepass"), np.uint32)
    spaces = codes == _SPACE
    before = np.concatenate([[0], spaces.cumsum()])  # spaces before each letter
    hashes, words = [], []
    for n in NGRAMS:
        starts = np.arange(max(0, len(codes) - n + 1))
        starts = starts[before[starts + n - 1] == before[starts + 1]]  # no space but at its ends
        hashes.append(_mix(_polynomial(codes, starts, n)))
        words.append(before[starts + 1] - 1)
    return np.concatenate(hashes), np.concatenate(words)


def _polynomial(codes: NDArray[np.uint32], starts: NDArray[np.int64], n: int) -> NDArray[np.uint32]:
    total = np.full(len(starts), n, np.uint32)
    for i in range(n):
        total = total * _MULTIPLIER + codes[starts + i]  # modulo 2^32
    return total


def _mix(values: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The last step of MurmurHash3 (fmix32): every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return ((values ^ (values >> np.uint32(16))) >> np.uint32(1)).astype(np.int64)
