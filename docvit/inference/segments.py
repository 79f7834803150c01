"""The best segmentation of a packet into documents, over all pages at once, and how sure each cut is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KIND_WEIGHT = 0.3  # of what pages say about their kind; they repeat each other, so that it is below 1

MISSED = 0.7  # log-odds added to each boundary: the head misses more of them than it invents

ONE_DOCUMENT = 6.0  # log-odds in favour of a file being one document, as most are; in training few are

Numbers = NDArray[np.float64]


def segment(boundaries: Numbers, kinds: Numbers) -> tuple[list[int], Numbers]:
    """Where documents begin, the first page among them, and for each page the probability that one begins there.

    A segmentation is the more probable the better each cut, and each page without one, agrees with its logit, and the
    better the pages of a segment agree on one kind: evidence sum_c 1/C prod_k (C p(c | page k)) ** `KIND_WEIGHT`. The
    best one is found by dynamic programming; the probabilities, over all segmentations, by the forward-backward
    algorithm (Sarawagi and Cohen, "Semi-Markov Conditional Random Fields", NIPS 2004).

    A cut has `MISSED` more than its logit says; a file that is one document has `ONE_DOCUMENT` more, so that a cut that
    is doubtful alone is made where others are certain.

    Args:
        boundaries: (N,) logits that a document begins at each page; the first is not read.
        kinds: (N, C) log-probabilities of the kinds of each page.
    """
    count, boundaries = len(boundaries), boundaries + MISSED
    begins, goes_on = -np.logaddexp(0, -boundaries), -np.logaddexp(0, boundaries)
    begins[0] = goes_on[0] = 0.0
    within = np.concatenate([[0.0], goes_on.cumsum()])  # of the pages before
    evidence = np.concatenate(
        [np.zeros((1, kinds.shape[1])), (KIND_WEIGHT * (kinds + np.log(kinds.shape[1]))).cumsum(0)]
    )

    def scores(end: int) -> Numbers:
        """(end,) of the segments from each page up to page `end`, exclusive."""
        agreement = np.logaddexp.reduce(evidence[end] - evidence[:end], axis=1) - np.log(kinds.shape[1])
        return begins[:end] + within[end] - within[1 : end + 1] + agreement

    best, forward = np.zeros(count + 1), np.zeros(count + 1)
    start_of = np.zeros(count + 1, int)
    of_end = [np.zeros(0)] + [scores(end) for end in range(1, count + 1)]
    of_end[count][0] += ONE_DOCUMENT
    for end in range(1, count + 1):
        reached = best[:end] + of_end[end]
        start_of[end] = reached.argmax()
        best[end] = reached[start_of[end]]
        forward[end] = np.logaddexp.reduce(forward[:end] + of_end[end])
    backward = np.full(count + 1, -np.inf)
    backward[count] = 0.0
    for end in range(count, 0, -1):
        backward[:end] = np.logaddexp(backward[:end], backward[end] + of_end[end])
    cuts = [count]
    while cuts[-1] > 0:
        cuts.append(int(start_of[cuts[-1]]))
    sure = np.exp(forward[:-1] + backward[:-1] - forward[count]).clip(0, 1)
    sure[0] = 1.0  # but for rounding
    return cuts[:0:-1], sure
