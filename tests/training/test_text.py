"""The text classifier that is added to a trained model."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from conftest import CLASSES, classed_pdf, worded_pdf
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression

from docvit.data.labels import LabelledDocuments, read_labelled
from docvit.data.sampling import balance
from docvit.documents.cache import default_cache
from docvit.documents.hashing import hash_ngrams
from docvit.documents.pages import open_document
from docvit.model.docvit import DocViT
from docvit.model.variants import create_model
from docvit.training.distributed import Process
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.supervised import train_documents
from docvit.training.text import STRENGTH, add_text_classifier, count_words

BUCKETS = 512


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> LabelledDocuments:
    """Three documents with words per class, and one without in the last."""
    folder = tmp_path_factory.mktemp("worded")
    for kind in CLASSES:
        (folder / kind).mkdir()
        for number in range(3):
            (folder / kind / f"{number}.pdf").write_bytes(worded_pdf(kind, number, 1 + number % 2))
    (folder / CLASSES[-1] / "scan.pdf").write_bytes(classed_pdf(CLASSES[-1]))
    return read_labelled(folder)


def model_of(classes: tuple[str, ...] = CLASSES, words: int = BUCKETS) -> DocViT:
    torch.manual_seed(0)
    return create_model("docvit_linear_patch32", num_classes=len(classes), classes=classes, words=words).eval()


def rendered(model: DocViT, data: LabelledDocuments):
    return render_all(
        data.paths, model.config.rendering, Process(torch.device("cpu")), cache=default_cache(), workers=0
    )


def logits_of(model: DocViT, path: str, words: bool = True) -> torch.Tensor:
    with open_document(path) as document, torch.inference_mode():
        batch = model.pack([document])
    with torch.inference_mode():
        return model.eval()(batch if words else batch.without_words())[0]


def added(data: LabelledDocuments, weight: float = 0.5, model: DocViT | None = None) -> tuple[DocViT, DocViT]:
    """A model, and the same with a text classifier."""
    model = model or model_of(data.classes)
    files = rendered(model, data)
    count_words(model, files.values())
    return model, add_text_classifier(model, data, files, weight=weight)


def expected(data: LabelledDocuments) -> np.ndarray:
    """What scikit-learn's own TF-IDF and logistic regression say of each document with words (NaN: without)."""
    counts = np.zeros((len(data), BUCKETS))
    for row, path in zip(counts, data.paths, strict=True):
        with open_document(path) as document:
            texts = [text for page in range(document.num_pages) for text in document.read_words(page).texts]
        np.add.at(row, hash_ngrams(texts)[0] % BUCKETS, 1)
    weights, written = TfidfTransformer(sublinear_tf=True).fit_transform(counts), counts.any(1)
    sample = balance(data)[written]
    regression = LogisticRegression(C=STRENGTH, fit_intercept=False, max_iter=1000, tol=1e-3)
    regression.fit(weights[written], np.array(data.labels)[written], sample / sample.mean())
    logits = weights @ regression.coef_.T
    logits[~written] = np.nan
    return logits


def test_logits_of_a_logistic_regression_on_tf_idf_are_added(data):
    before, after = added(data, weight=0.7)
    for path, logits in zip(data.paths, expected(data), strict=True):
        if np.isfinite(logits).all():
            difference = logits_of(after, path) - logits_of(before, path)
            np.testing.assert_allclose(difference.numpy(), 0.7 * logits, atol=0.02)


def test_documents_without_words_keep_their_logits(data):
    before, after = added(data)
    scan, written = next(path for path in data.paths if "scan" in path), data.paths[0]
    torch.testing.assert_close(logits_of(after, scan), logits_of(before, scan))
    torch.testing.assert_close(logits_of(after, written, words=False), logits_of(before, written, words=False))
    assert (logits_of(after, written) - logits_of(before, written)).abs().max() > 0.1


def test_two_classes_get_opposite_weights(data):
    two = data.subset([i for i, label in enumerate(data.labels) if label < 2])
    two = LabelledDocuments(two.paths, two.labels, data.classes[:2])
    before, after = added(two)
    right = 0
    for path, label in zip(two.paths, two.labels, strict=True):
        difference = logits_of(after, path) - logits_of(before, path)
        assert difference.sum() == pytest.approx(0, abs=1e-5)
        right += int(difference.argmax()) == label
    assert right == len(two)


def test_a_class_without_documents_that_have_words_gets_nothing(data):
    scans = LabelledDocuments(
        data.paths,
        [2 if "scan" in p else min(label, 1) for p, label in zip(data.paths, data.labels, strict=True)],
        data.classes,
    )
    before, after = added(scans)
    assert (logits_of(after, data.paths[0]) - logits_of(before, data.paths[0]))[2] == 0


@pytest.mark.parametrize(("weight", "words"), [(0.0, BUCKETS), (0.5, 0)])
def test_without_weight_or_words_the_model_stays_what_it_is(data, weight, words):
    before, after = added(data, weight, model_of(words=words))
    assert after is before


def test_a_table_that_a_model_has_is_kept(data):
    _, once = added(data)
    assert added(data, model=once)[1] is once


def test_a_model_for_other_classes_begins_without_the_table(data, tmp_path):
    _, after = added(data)
    after.save_pretrained(tmp_path)
    same, other = (build_model(Recipe(init=str(tmp_path)), classes) for classes in (data.classes, ("x", "y", "z")))
    assert same.config.document_words == len(CLASSES)
    assert other.config.document_words == 0


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_training_ends_with_it_and_reports_the_finished_model(data, tmp_path, weight):
    loop = TrainSettings(epochs=1, lr=1e-3)
    recipe = Recipe(model="docvit_linear_patch32", settings={"words": BUCKETS}, text_weight=weight, train=loop)
    model, history = train_documents(data, tmp_path / "run", recipe, valid=data, device="cpu", workers=0)
    assert model.config.document_words == (len(CLASSES) if weight else 0)
    assert model.config.known  # calibrated with it
    saved = DocViT.from_pretrained(tmp_path / "run")
    right = [
        logits_of(saved, path).argmax().item() == label for path, label in zip(data.paths, data.labels, strict=True)
    ]
    assert history[-1]["valid_accuracy"] == pytest.approx(np.mean(right))
    last = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))[-1]
    assert float(last["valid_loss"]) == pytest.approx(history[-1]["valid_loss"], rel=1e-4)
