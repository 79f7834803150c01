"""Own classes from a few examples each: a linear head on the frozen features of a model. `docvit fit`.

The head reads the model's own feature and, of a model that reads words, the TF-IDF of the document's n-grams and their
vector in the model's table. What words give is linear in the TF-IDF, so that the weights for it are a table of their
own (`DocViTConfig.document_words`). All is fitted as one logistic regression.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from scipy import sparse
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from docvit.data.dataset import DocumentDataset, view_of
from docvit.data.labels import DataError, LabelledDocuments, check_copies, read_labelled
from docvit.data.sampling import TokenBudget
from docvit.documents.ocr import pages_for
from docvit.documents.pages import PageStack
from docvit.documents.patches import PatchSequence
from docvit.errors import SettingError
from docvit.files import write_tensors
from docvit.hardware import choose_device
from docvit.model.config import UNCALIBRATED
from docvit.model.docvit import DocViT
from docvit.model.errors import NO_NUMBERS, ModelError
from docvit.model.upright import judge_upright
from docvit.model.words import document_ngrams
from docvit.training.calibrate import calibrate
from docvit.training.distributed import Process
from docvit.training.rendering import render_all
from docvit.training.run_folder import check_unused
from docvit.training.text import per_class, tf_idf

EXAMPLES = "examples.safetensors"

BUDGET = 2048  # tokens of a batch; with many more a processor's caches overflow

STRENGTHS = (3.0, 10.0, 30.0)  # inverse weights of the penalty; the first where every class has one example

SHARPNESS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # factors of the logits; if all are right, more is always better

MAX_LEFT_OUT = 100  # of more examples, several are left out at a time

PIXELS = 0.3  # weight of an example without its words, against 1 with them

WORDS = 1.5  # norm of a document's TF-IDF, where the root mean square of the norms of centred features is 1


@dataclass(frozen=True)
class Examples:
    """Labelled examples as a frozen model sees them.

    Attributes:
        features: (n, V, F) the model's feature of each, in V views: as it is, and, of a model that reads words, without
            them, as a scan would be.
        words: (n, buckets) TF-IDF of each one's n-grams, of norm 1; of a model without words one column of zeros.
        labels: the label of each.
        paths: where each was found.
        contents: something that is the same for copies of a document alone.
    """

    features: Tensor
    words: sparse.csr_matrix
    labels: tuple[str, ...]
    paths: tuple[str, ...]
    contents: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels)))

    @property
    def targets(self) -> np.ndarray:
        """(n,) index of each one's class."""
        return np.array([self.classes.index(label) for label in self.labels])

    def select(self, indices: np.ndarray | list[int]) -> Examples:
        listed = [tuple(values[i] for i in indices) for values in (self.labels, self.paths, self.contents)]
        return Examples(self.features[indices], self.words[indices], *listed)

    def replaced_by(self, others: Examples) -> Examples:
        """These and the others; where both have a document, its label is the others'."""
        mine = self.select([i for i, content in enumerate(self.contents) if content not in others.contents])
        return Examples(
            torch.cat([mine.features, others.features]),
            sparse.vstack([mine.words, others.words], "csr"),
            mine.labels + others.labels,
            mine.paths + others.paths,
            mine.contents + others.contents,
        )

    def save(self, folder: Path) -> None:
        """Writes `examples.safetensors` into a model folder."""
        listed = {name: list(getattr(self, name)) for name in ("labels", "paths", "contents")}
        names = ("data", "indices", "indptr")
        tensors = {f"words.{name}": torch.from_numpy(getattr(self.words, name)) for name in names}
        about = json.dumps({**listed, "buckets": self.words.shape[1]})
        write_tensors(folder / EXAMPLES, {"features": self.features, **tensors}, {"docvit": about})

    @classmethod
    def load(cls, folder: Path) -> Examples:
        """Raises ModelError: the folder holds no examples, or damaged ones."""
        file = folder / EXAMPLES
        if not file.is_file():
            raise ModelError(f"{folder} holds no {EXAMPLES}: only to what `docvit fit` wrote can examples be added")
        try:
            with safe_open(file, "pt") as opened:
                about = json.loads(opened.metadata()["docvit"])
                listed = [tuple(about[name]) for name in ("labels", "paths", "contents")]
                parts = tuple(opened.get_tensor(f"words.{name}").numpy() for name in ("data", "indices", "indptr"))
                words = sparse.csr_matrix(parts, shape=(len(listed[0]), about["buckets"]))
                return cls(opened.get_tensor("features"), words, *listed)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{file} is damaged: fit again without --add") from error


@dataclass(frozen=True)
class FitReport:
    """What leaving each example out in turn says.

    Attributes:
        labels, paths: of the examples.
        classes: in the order of the probabilities.
        probabilities: (n, C) of each example by a head that was fitted without it; NaN for the only one of its class.
    """

    labels: tuple[str, ...]
    paths: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: np.ndarray

    def of_class(self, label: str) -> tuple[int, float, float]:
        """Number of examples, the share recognised when left out, and the mean probability of the class for them.

        The latter are NaN for a class of one example.
        """
        rows = self.probabilities[[own == label for own in self.labels]]
        own = rows[:, self.classes.index(label)]
        right = np.where(np.isnan(own), np.nan, rows.argmax(1) == self.classes.index(label))
        return len(rows), float(right.mean()), float(own.mean())

    def doubtful(self, least: float = 0.5) -> list[tuple[str, str, str, float]]:
        """(path, label, class that it looks like, probability) of what may be mislabelled, the likeliest first.

        Args:
            least: probability of the other class from which on an example is listed.
        """
        found = []
        for path, label, row in zip(self.paths, self.labels, self.probabilities, strict=True):
            other = self.classes[int(row.argmax())]
            if other != label and row.max() >= least:  # comparisons with NaN are false
                found.append((path, label, other, float(row.max())))
        return sorted(found, key=lambda row: -row[3])


def fit_documents(
    data: LabelledDocuments | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | None = None,
    add: bool = False,
    skip_unreadable: bool = False,
    device: torch.device | str | None = None,
    cache: Path | None = None,
    workers: int = 2,
    password: str | None = None,
    ocr_pages: int = 0,
) -> tuple[DocViT, FitReport]:
    """A model for the classes of `data`, from one example per class on.

    The model's features stay as they are; a logistic regression on them becomes its head. How strongly its weights are
    penalised is chosen by leaving each example out in turn.

    Args:
        data: a folder per class, a CSV with the columns path and label, or what `read_labelled` gives.
        output: model folder to write; it also keeps the features of the examples, for `add`.
        model: model folder, hub id, or None for the bundled model.
        add: these examples come to those in `output`, which is written anew; a document that is there already gets
            its new label.
        skip_unreadable: leave out documents that cannot be read; the log lists them.
        cache: folder for rendered pages; None for `docvit.documents.cache.default_cache`.
        workers: rendering processes.
        password: opens PDFs that have one.
        ocr_pages: of a document's first so many pages, those without a text layer are read by OCR (`docvit[ocr]`).

    Returns:
        The model, in eval mode, and what is to be said about the examples.

    Raises:
        DataError, ModelError, TrainingError, ValueError: as `docvit.fit` says.
    """
    folder = None if output is None else Path(output)
    earlier = None
    if add:
        if folder is None:
            raise SettingError("examples are added to a folder: name it as output")
        if model is not None:
            raise SettingError("examples are added to the model in the output folder: name no other")
        earlier = Examples.load(folder)
    elif folder is not None:
        check_unused(folder, "add to it (--add)")
    labelled = data if isinstance(data, LabelledDocuments) else read_labelled(data)
    process = Process(choose_device(device))
    fitted = DocViT.from_pretrained(folder if add else model)
    reading: dict[str, Any] = {"workers": workers, "password": password, "skip_unreadable": skip_unreadable}
    reading["ocr_pages"] = pages_for(fitted.config.words > 0, ocr_pages)
    files = render_all(labelled.paths, fitted.config.rendering, process, cache=cache, **reading)
    labelled = labelled.only(files)
    check_copies(labelled, files)
    examples = see(fitted.to(process.device), labelled, files)
    if earlier is not None:
        examples = earlier.replaced_by(examples)
    if len(examples.classes) < 2:
        names = ", ".join(examples.classes) or "none"
        raise DataError("the data", [f"a model needs examples of at least two classes, found: {names}"])
    fitted, probabilities = fit_head(fitted, examples)
    if folder is not None:
        fitted.save_pretrained(folder)
        examples.save(folder)
    return fitted, FitReport(examples.labels, examples.paths, examples.classes, probabilities)


@torch.inference_mode()
def see(model: DocViT, data: LabelledDocuments, files: Mapping[str, Path]) -> Examples:
    """Documents as the model sees them: whole, turned pages turned upright; copies of one document count once."""
    first = {files[path]: i for i, path in reversed(list(enumerate(data.paths)))}
    data = data.subset(sorted(first.values()))
    dataset = DocumentDataset([files[path] for path in data.paths], None, view_of(model.config))
    own = model.num_features - model.config.document_words  # an earlier fit's part is left out

    def look(stacks: list[PageStack]) -> tuple[list[tuple[Tensor, sparse.csr_matrix]], Sequence[Tensor]]:
        sequence = dataset.pack(stacks).to(model.cls_token.device)
        seen = [sequence, sequence.without_words()] if model.words is not None else [sequence]
        stem = model.forward_stem(sequence)
        pages = [model.forward_features(view, stem) for view in seen]
        views = torch.stack([model.forward_head(x, pre_logits=True)[:, :own] for x in pages], 1).float().cpu()
        turned = model.forward_turns(pages[0], sequence).cpu().split([len(stack.pages) for stack in stacks])
        return list(zip(views, _tf_idf(model, sequence), strict=True)), turned

    found: list[tuple[Tensor, sparse.csr_matrix]] = []
    for keys in TokenBudget(dataset.tokens(), BUDGET, shuffle=False):  # in order
        found += judge_upright(look, [dataset[key][2] for key in keys])[0]
    features, words = zip(*found, strict=True)
    stacked = torch.stack(features)
    if not stacked.isfinite().all():
        raise ModelError(NO_NUMBERS)
    return Examples(
        stacked,
        sparse.vstack(words, "csr"),
        tuple(data.classes[label] for label in data.labels),
        data.paths,
        tuple(files[path].stem.partition("-")[0] for path in data.paths),
    )


def _tf_idf(model: DocViT, batch: PatchSequence) -> sparse.csr_matrix:
    """(B, buckets); of a model without words a column of zeros."""
    if model.words is None:
        return sparse.csr_matrix((batch.num_documents, 1), dtype=np.float32)
    return tf_idf(model.words, batch.words, document_ngrams(batch))


def fit_head(model: DocViT, examples: Examples) -> tuple[DocViT, np.ndarray]:
    """A copy of the model with a head for the classes of the examples, in eval mode; and `FitReport.probabilities`."""
    count, views = len(examples.classes), examples.features.shape[1]
    features = examples.features.double().numpy()  # (n, V, F)
    mean = features[:, 0].mean(0)
    scale = np.sqrt(np.square(features[:, 0] - mean).sum(1).mean()) or 1.0
    features = ((features - mean) / scale).reshape(len(examples) * views, -1)
    words, table = examples.words.astype(np.float64), _word_vectors(model, examples.words)
    vectors_of_words = words @ table  # (n, width)
    of_words = WORDS**2 * (words @ words.T).toarray() + vectors_of_words @ vectors_of_words.T
    first = np.diag(np.eye(views)[0])  # the view that has words
    # n V rows span n V directions at most; under a quadratic penalty the weights lie in that span (representer theorem)
    products = features @ features.T + np.kron(of_words, first)
    sizes, vectors = np.linalg.eigh(products)
    if sizes[-1] <= 0:
        raise DataError("the data", ["all examples look alike to the model, such as blank pages do"])
    vectors, roots = vectors[:, sizes > 1e-9 * sizes[-1]], np.sqrt(sizes[sizes > 1e-9 * sizes[-1]])
    spanned = (vectors * roots).reshape(len(examples), views, -1)
    strength, sharpness, left_out = _leave_out(spanned, examples.targets, count)
    weight, bias = (sharpness * part for part in _weights(_regression(strength, spanned, examples.targets)))
    of_rows = weight @ (vectors / roots).T  # (C, n V), the share of each row in the weights of each class
    weight = of_rows @ features / scale  # (C, F)
    direct = count if model.words is not None else 0
    settings = {"num_classes": count, "classes": examples.classes, "document_words": direct}
    fitted = model.adapt(**settings, **UNCALIBRATED).eval()
    head = cast(nn.Linear, fitted.head)
    with torch.no_grad():
        head.weight.zero_()[:, : weight.shape[1]] = torch.from_numpy(weight)
        head.bias.copy_(torch.from_numpy(bias - weight @ mean))
        if fitted.words is not None and fitted.words.of_documents is not None:
            head.weight[:, weight.shape[1] :] = torch.eye(count)
            of_documents = of_rows[:, ::views]
            weight = WORDS**2 * (of_documents @ words) + of_documents @ vectors_of_words @ table.T  # (C, buckets)
            fitted.words.of_documents.weight.copy_(torch.from_numpy(weight.T))
    seen = np.isfinite(left_out).all((1, 2))
    targets = torch.from_numpy(examples.targets[seen])
    for view, logits in enumerate(torch.from_numpy(left_out[seen]).unbind(1)):
        calibrate(fitted, logits, targets, pixels=view > 0)
    return fitted, softmax(left_out[:, 0], 1)


def _word_vectors(model: DocViT, words: sparse.csr_matrix) -> np.ndarray:
    """(buckets, width) the model's table, by which words that it has learned to be alike are alike.

    It is scaled so that the root mean square of the norms of these documents' vectors is 1.
    """
    if model.words is None:
        return np.zeros((words.shape[1], 1))
    table = model.words.embedding.weight.detach().cpu().double().numpy()
    scale = np.sqrt(np.square(words @ table).sum(1).mean())
    return np.asarray(table / (scale or 1.0))


def _regression(
    strength: float, features: np.ndarray, targets: np.ndarray, start: LogisticRegression | None = None
) -> LogisticRegression:
    """A regression on all views (n, V, R) of examples, every class with the same weight; it may start from another."""
    views = features.shape[1]
    regression = LogisticRegression(C=strength, max_iter=1000, warm_start=True)
    if start is not None:
        regression.coef_, regression.intercept_, regression.classes_ = start.coef_, start.intercept_, start.classes_
    of_class = len(targets) / np.bincount(targets)[targets] / len(np.unique(targets))
    weights = np.outer(of_class, [1.0, PIXELS][:views]).ravel()
    return regression.fit(features.reshape(len(targets) * views, -1), targets.repeat(views), weights)


def _weights(regression: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """(C, R) and (C,) of each class."""
    return per_class(regression.coef_), per_class(regression.intercept_)


def _leave_out(features: np.ndarray, targets: np.ndarray, count: int) -> tuple[float, float, np.ndarray]:
    """The best strength, the best factor of its logits, and (n, V, C) logits under both of examples left out.

    The first of their views (n, V, R) decides. Of each strength the best factor is compared. Without it the likelihood
    would choose weak penalties, since their probabilities are less timid, and not since they rank the classes better.
    """
    alone = np.bincount(targets)[targets] == 1
    left_out = np.flatnonzero(~alone)
    logits = np.full((len(STRENGTHS), len(targets), features.shape[1], count), np.nan)
    if not len(left_out):
        return STRENGTHS[0], 1.0, logits[0]
    # dealt out class by class: whichever part is left out, each class keeps an example
    dealt, hands = left_out[targets[left_out].argsort(kind="stable")], min(len(left_out), MAX_LEFT_OUT)
    parts = [dealt[hand::hands] for hand in range(hands)]
    for i, strength in enumerate(STRENGTHS):
        whole = _regression(strength, features, targets)
        for part in parts:
            kept = np.setdiff1d(np.arange(len(targets)), part)
            weight, bias = _weights(_regression(strength, features[kept], targets[kept], whole))
            logits[i, part] = features[part] @ weight.T + bias
    sharpened = np.stack([factor * logits for factor in SHARPNESS])  # (factors, strengths, n, V, C)
    likelihood = log_softmax(sharpened[:, :, left_out, 0], 3)[:, :, np.arange(len(left_out)), targets[left_out]].mean(2)
    factor, best = np.unravel_index(likelihood.argmax(), likelihood.shape)
    return STRENGTHS[best], SHARPNESS[factor], sharpened[factor, best]
