"""What a finished model knows: from documents of sources that it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from docvit.errors import SettingError
from docvit.model.config import UNCALIBRATED
from docvit.model.docvit import DocViT

KEPT = 0.95  # of the right answers are not unsure


def calibrate(model: DocViT, logits: Tensor, labels: Tensor, *, pixels: bool = False) -> None:
    """Sets the model's `known` and `min_score` by its logits (B, C) of documents that it was not trained on.

    Known and unknown documents differ in the energy of their logits (Liu et al., "Energy-based Out-of-
    distribution Detection", arXiv 2010.03759). There are no unknown documents to learn this from: the documents of each
    class stand for them, once its logit is left out. With documents of one class alone nothing is set.

    `pixels`: the logits are of documents without their words, for which a model that reads words has its own numbers.
    """
    # imported here: classifying does not need scikit-learn
    from sklearn.linear_model import LogisticRegression

    logits, labels = logits.double().cpu(), labels.cpu()
    if len(labels.unique()) < 2:
        return
    without = logits.masked_fill(torch.nn.functional.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    energies = torch.cat([logits.logsumexp(1), without.logsumexp(1)])[:, None].numpy()
    fitted = LogisticRegression(C=10.0).fit(energies, np.repeat([1, 0], len(labels)))
    known = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if known[0] <= 0:  # documents that the model has not learnt anything about
        return
    which = "_pixels" if pixels else ""
    found: dict[str, Any] = {f"known{which}": known}
    model.config = replace(model.config, **found)
    scores, predicted = logits.softmax(1).max(1)
    right = (scores * model.known(logits, pixels=pixels))[predicted == labels]
    found[f"min_score{which}"] = float(right.quantile(1 - KEPT)) if len(right) else 0.0
    model.config = replace(model.config, **found)


def calibrate_like(model: DocViT, others: Sequence[DocViT]) -> None:
    """Sets the model's `known` and `min_score` to the means of others': of models of other folds of its data.

    Raises:
        SettingError: one of them has other classes, or was never calibrated.
    """
    for other in others:
        if other.config.classes != model.config.classes or not other.config.known:
            raise SettingError("thresholds come from models of the same classes that were evaluated on held-out data")
    means: dict[str, Any] = {}
    for name in UNCALIBRATED:
        values = [getattr(other.config, name) for other in others]
        if all(value != () for value in values):
            mean = np.mean(values, 0).tolist()
            means[name] = tuple(mean) if isinstance(mean, list) else mean
    model.config = replace(model.config, **means)
