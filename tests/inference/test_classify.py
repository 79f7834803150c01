"""`DocumentClassifier`: paths in, predictions out, whatever the paths are."""

from __future__ import annotations

import copy
import json
import logging

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY, classed_pdf
from PIL import Image
from torch import nn

import docvit
from docvit.documents.errors import DocumentError, NotFound, Unreadable
from docvit.documents.pages import PageStack, read_document
from docvit.inference.classify import DocumentClassifier
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT


@pytest.fixture(scope="module")
def classifier(trained):
    return DocumentClassifier.from_pretrained(trained, device="cpu")


@pytest.fixture
def paths(tmp_path):
    """Seven documents of one to four pages, with a missing one and a broken one among them."""
    found = []
    for i in range(7):
        path = tmp_path / f"{i}.pdf"
        path.write_bytes(classed_pdf(CLASSES[i % 3], 1 + i % 4, 5.0 * i))
        found.append(str(path))
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 no more than this")
    return [*found[:3], str(tmp_path / "gone.pdf"), *found[3:5], str(tmp_path / "broken.pdf"), *found[5:]]


def numbers(prediction):
    return [page.number for page in prediction.pages]


def assert_alike(one, two):
    assert (one.path, one.label, one.num_pages, numbers(one)) == (two.path, two.label, two.num_pages, numbers(two))
    assert one.scores == pytest.approx(two.scores, abs=0.02)  # bfloat16, where the machine is fast at it
    assert one.page_relevance == pytest.approx(two.page_relevance, abs=0.02)


def test_one_document(classifier, tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(classed_pdf("blocks", 3))
    p = classifier(path)
    assert (p.path, p.label, p.num_pages, p.pages_read, numbers(p), p.error) == (
        str(path),
        "blocks",
        3,
        3,
        [1, 2, 3],
        None,
    )
    assert p.score == p.scores["blocks"] == max(p.scores.values())
    assert set(p.scores) == set(CLASSES)
    assert list(p.scores.values()) == sorted(p.scores.values(), reverse=True)
    assert sum(p.scores.values()) == pytest.approx(1)
    assert len(p.page_relevance) == 3
    assert sum(p.page_relevance) == pytest.approx(1)


def test_scores_and_evidence_are_the_model_s(classifier, tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(classed_pdf("text", 2))
    p, model = classifier(path), classifier.model
    batch = model.pack([read_document(path, classifier.rendering)])
    with torch.no_grad():
        scores = model(batch).softmax(1)[0]
        by_page = model.forward_pages(model.forward_features(batch)).softmax(1)[:, CLASSES.index("text")]
    assert [p.scores[name] for name in CLASSES] == pytest.approx(scores.tolist(), abs=0.02)
    assert p.page_relevance == pytest.approx((by_page / by_page.sum()).tolist(), abs=0.02)


@pytest.mark.parametrize("workers", [0, 2])
def test_many_are_as_one_by_one_in_order_and_bad_files_do_not_stop_them(classifier, paths, workers):
    rows = list(classifier.predict(paths, workers=workers))
    assert [row.path for row in rows] == paths
    for row in rows:
        if row.error is None:
            assert_alike(row, classifier(row.path))
        else:
            with pytest.raises(type(row.error), match=row.error.message[:20]):
                classifier(row.path)
            assert (row.label, row.score, row.scores, row.num_pages, row.page_relevance) == (None, None, {}, None, [])
    assert [type(row.error) for row in rows if row.error] == [NotFound, Unreadable]


@pytest.mark.parametrize("workers", [0, 2])
def test_weights_that_are_cast_once_a_stream_change_nothing_and_stay_with_the_stream(classifier, paths, workers):
    """As where bfloat16 is fast, wherever this runs."""
    half, before = copy.copy(classifier), copy.deepcopy(classifier.model.state_dict())
    half.bf16 = True
    cast = [module.weight.dtype for module in half.for_stream().model.modules() if isinstance(module, nn.Linear)]
    assert set(cast) == {torch.bfloat16}
    for row in half.predict(paths, workers=workers):
        assert row.error or assert_alike(row, half(row.path)) is None
    assert all(torch.equal(value, before[name]) for name, value in classifier.model.state_dict().items())


def test_the_budget_of_a_batch_changes_nothing(classifier, paths):
    for one, two in zip(
        classifier.predict(paths, workers=0, budget=1), classifier.predict(paths, workers=0), strict=True
    ):
        assert one.error or assert_alike(one, two) is None


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_come_while_paths_are_still_being_given(classifier, paths, workers):
    given = []

    def endless():
        while True:
            given.append(paths[0])
            yield paths[0]

    rows = classifier.predict(endless(), workers=workers)
    for count in range(1, 20):
        assert next(rows).label is not None
        assert len(given) <= count + 7 * 32 + 12  # a few batches of at most 32 are under way
    rows.close()


def test_nothing_in_nothing_out(classifier):
    assert list(classifier.predict([], workers=0)) == []
    assert classifier.classify_pages([]) == []


def test_keys_of_a_json_line(classifier, paths):
    good, missing = classifier(paths[0]), next(classifier.predict([paths[3]], workers=0))
    keys = {
        "path",
        "label",
        "score",
        "scores",
        "num_pages",
        "pages_read",
        "page_relevance",
        "error",
        "pages",
        "words_read",
        "words_from",
        "note",
        "parts",
        "known",
        "unsure",
    }
    for prediction in (good, missing):
        assert set(json.loads(json.dumps(prediction.as_dict()))) == keys
    assert good.as_dict()["error"] is None
    error = missing.as_dict()["error"]
    assert set(error) == {"type", "message"}
    assert error["type"] == "NotFound"


def test_a_long_document_is_read_at_pages_spread_evenly_under_their_true_numbers(classifier, tmp_path, monkeypatch):
    path = tmp_path / "ten.pdf"
    path.write_bytes(classed_pdf("text", 10))
    packed = []
    original = DocViT.pack

    def remembering(model, documents, **options):
        packed.append(original(model, documents, **options))
        return packed[-1]

    monkeypatch.setattr(DocViT, "pack", remembering)
    for p in (classifier(path, max_pages=4), next(classifier.predict([path], max_pages=4, workers=0))):
        assert (p.num_pages, p.pages_read, numbers(p)) == (10, 4, [1, 4, 7, 10])
        assert len(p.page_relevance) == 4
        assert sum(p.page_relevance) == pytest.approx(1)
        assert packed[-1].page_index.tolist() == [0, 3, 6, 9]


def test_more_pages_than_the_model_has_numbers_for(tmp_path):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY, num_classes=2, page_embeddings=3))
    path = tmp_path / "long.pdf"
    path.write_bytes(classed_pdf("bars", 9))
    p = DocumentClassifier(model, device="cpu")(path, max_pages=None)
    assert p.pages_read == 9
    assert p.label in ("0", "1")  # a model without names numbers its classes
    assert np.isfinite(p.page_relevance).all()


def test_scans_and_folders_are_documents_too(classifier, tmp_path):
    folder = tmp_path / "scan"
    folder.mkdir()
    for i in range(3):
        Image.linear_gradient("L").resize((60, 90)).save(folder / f"{i}.png")
    rows = list(classifier.predict([folder, folder / "0.png"], workers=0))
    assert [row.num_pages for row in rows] == [3, 1]
    assert all(row.error is None and sum(row.page_relevance) == pytest.approx(1) for row in rows)


def test_pages_at_hand_need_no_file(classifier):
    stack = PageStack("memory", [np.eye(64, 48, dtype=np.uint8) * 255], [6], 9)
    (p,) = classifier.classify_pages([stack])
    assert (p.path, p.num_pages, p.pages_read, numbers(p)) == ("memory", 9, 1, [7])


def test_another_renderer_than_the_model_s_warns(trained, caplog):
    with caplog.at_level(logging.WARNING):
        same = DocumentClassifier.from_pretrained(trained, device="cpu", renderer="pdfium")
        assert not caplog.records
        other = DocumentClassifier.from_pretrained(trained, device="cpu", renderer="poppler")
    assert (same.rendering.renderer, other.rendering.renderer) == ("pdfium", "poppler")
    assert "trained on pages drawn by pdfium" in caplog.text


def test_what_cannot_be_a_classifier(tmp_path):
    with pytest.raises(ValueError, match="no classes"):
        DocumentClassifier(DocViT(DocViTConfig(**TINY, num_classes=0)))
    with pytest.raises(ValueError, match="no device 'nonsense'"):
        DocumentClassifier(DocViT(DocViTConfig(**TINY, num_classes=2)), device="nonsense")
    with pytest.raises(docvit.ModelError, match=r"config\.json and model.safetensors missing"):
        DocumentClassifier.from_pretrained(tmp_path)
    with pytest.raises(docvit.ModelError, match="neither a model folder nor a hub model"):
        DocumentClassifier.from_pretrained(tmp_path / "gone")


def test_errors_of_one_document_are_raised(classifier, tmp_path):
    with pytest.raises(DocumentError):
        classifier(tmp_path / "gone.pdf")


# --- the bundled model ---


def test_the_bundled_model_classifies_offline(tmp_path):
    classifier = DocumentClassifier.from_pretrained(device="cpu")
    assert classifier.classes == (
        "assignment", "brochure", "cheatsheet", "contract", "datasheet", "form", "invoice", "manual",
        "minutes", "news", "paper", "report", "resume", "sheet_music", "slides", "thesis",
    )  # fmt: skip
    path = tmp_path / "a.pdf"
    path.write_bytes(classed_pdf("text", 3))
    p = classifier(path)
    assert p.label in classifier.classes
    assert sum(p.scores.values()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_model_in_another_precision_classifies_on_any_cpu(trained, corpus, monkeypatch, dtype):
    expected = DocumentClassifier.from_pretrained(trained, device="cpu")(corpus / "bars" / "bars0.pdf")
    monkeypatch.setattr("docvit.inference.classify.has_fast_bf16", lambda _: True)
    model = DocViT.from_pretrained(trained).to(dtype)
    found = DocumentClassifier(model, device="cpu")(corpus / "bars" / "bars0.pdf")
    assert found.label == expected.label
    assert found.score == pytest.approx(expected.score, abs=0.05)
