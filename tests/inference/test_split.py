"""`docvit.split`: the best segmentation, the rows, and everything that files may be."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import ENCRYPTED, classed_pdf, pdf_bytes
from PIL import Image

import docvit
from docvit.documents.errors import DocumentError, Empty, Encrypted, TooLarge
from docvit.documents.pages import read_document
from docvit.documents.words import Words
from docvit.errors import SettingError
from docvit.inference import classify, split
from docvit.inference.classify import DocumentClassifier
from docvit.inference.segments import KIND_WEIGHT, MISSED, ONE_DOCUMENT, segment
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError


def enumerated(boundaries, kinds):
    """The most probable segmentation and the marginals of all cuts, by going through every segmentation."""
    count, found = len(boundaries), {}
    for cuts in product([False, True], repeat=count - 1):
        begins = [0, *(i + 1 for i, cut in enumerate(cuts) if cut)]
        score = ONE_DOCUMENT * (len(begins) == 1) + sum(
            -np.log1p(np.exp(-z - MISSED if cut else z + MISSED)) for z, cut in zip(boundaries[1:], cuts, strict=True)
        )
        for first, end in zip(begins, [*begins[1:], count], strict=True):
            agreed = np.exp(KIND_WEIGHT * (kinds[first:end] + np.log(kinds.shape[1])).sum(0))
            score += np.log(agreed.mean())
        found[tuple(begins)] = score
    weights = {begins: np.exp(score) for begins, score in found.items()}
    total = sum(weights.values())
    marginals = [sum(w for begins, w in weights.items() if i in begins) / total for i in range(count)]
    return list(max(found, key=found.get)), marginals


@pytest.mark.parametrize("seed", range(8))
def test_the_segmentation_is_the_best_of_all_and_cuts_have_their_marginal_probabilities(seed):
    random = np.random.default_rng(seed)
    boundaries = random.normal(0, 2, 8)
    kinds = np.log(random.dirichlet([0.3] * 4, 8))
    begins, sure = segment(boundaries, kinds)
    best, marginals = enumerated(boundaries, kinds)
    assert begins == best
    assert sure.tolist() == pytest.approx(marginals)


def test_kinds_that_change_make_a_cut_and_one_kind_mends_a_doubtful_one():
    a, b, c = np.log(np.eye(3) * 0.97 + 0.01)
    doubtful = np.array([0, -3, 12, -3, 0.1, -3]) - MISSED
    assert segment(doubtful, np.stack([a, a, b, b, c, c]))[0] == [0, 2, 4]
    assert segment(doubtful, np.stack([a, a, b, b, b, b]))[0] == [0, 2]


def test_one_doubtful_cut_is_not_made_and_several_are():
    alike = np.log(np.full((5, 3), 1 / 3))
    begins, sure = segment(np.array([0.0, -9, 3 - MISSED, -9, -9]), alike)
    assert begins == [0]
    assert sure[2] == pytest.approx(1 / (1 + np.exp(ONE_DOCUMENT - 3)), abs=1e-3)
    assert segment(np.array([0.0, -9, 4 - MISSED, -9, 4 - MISSED]), alike)[0] == [0, 2, 4]


def test_one_page_is_one_document():
    assert segment(np.array([-9.0]), np.zeros((1, 3)))[0] == [0]


@pytest.fixture(scope="module")
def classifier(trained):
    return DocumentClassifier(DocViT.from_pretrained(trained).adapt(boundaries=8), device="cpu")


@pytest.fixture
def begins(monkeypatch):
    """Page indices at which the head sees a document begin; elsewhere it sees none."""
    found: dict[int, float] = {}

    def forward_boundaries(self, features, batch):
        return torch.tensor([found.get(int(i), -6.0) for i in batch.page_index])

    monkeypatch.setattr(DocViT, "forward_boundaries", forward_boundaries)
    return found


@pytest.fixture
def packet(tmp_path, make_packet):
    return make_packet(("bars", 2), ("text", 3), ("blocks", 1))


@pytest.fixture
def make_packet(tmp_path):
    """`make_packet(("bars", 2), ...)` writes a PDF of such documents."""
    import pypdfium2

    def make(*documents, name="packet.pdf"):
        whole = pypdfium2.PdfDocument.new()
        for kind, pages in documents:
            content = pdf_bytes([(612, 792)] * pages, contents=[b""] * pages) if kind == "blank" else None
            whole.import_pages(pypdfium2.PdfDocument(content or classed_pdf(kind, pages)))
        whole.save(tmp_path / name)
        return tmp_path / name

    return make


def bounds(parts):
    return [(part.first, part.last) for part in parts]


def test_parts_have_the_labels_and_scores_of_files_of_their_own(classifier, packet, begins, tmp_path):
    begins |= {2: 12.0, 5: 12.0}
    parts = docvit.split(packet, model=classifier)
    assert bounds(parts) == [(1, 2), (3, 5), (6, 6)]
    assert [part.label for part in parts] == ["bars", "text", "blocks"]
    assert parts[0].cut == 1
    assert all(0.99 < part.cut < 1 for part in parts[1:])
    (tmp_path / "own.pdf").write_bytes(classed_pdf("text", 3))
    assert parts[1].score == pytest.approx(classifier(tmp_path / "own.pdf").score, abs=0.02)


def test_of_a_scanned_packet_every_page_is_read_that_may_be(trained, packet, begins, monkeypatch):
    read = []
    monkeypatch.setattr("docvit.documents.workers.require_ocr", lambda: None)
    monkeypatch.setattr("docvit.documents.pages.ocr_words", lambda page: read.append(page) or Words())
    model = DocViT.from_pretrained(trained).adapt(boundaries=8, words=64)
    classifier = DocumentClassifier(model, device="cpu")
    for options, pages in (
        ({}, 0),
        ({"ocr_pages": 2000}, 6),
        ({"ocr_pages": 2}, 2),
        ({"ocr_pages": 2, "words": False}, 0),
    ):
        read.clear()
        (result,) = split.split_files(classifier, [packet], workers=0, **options)
        assert result.error is None
        assert len(read) == pages


def test_min_score_makes_only_the_surer_cuts(classifier, packet, begins):
    begins |= {2: 2.0, 5: 12.0}
    cuts = {part.first: part.cut for part in docvit.split(packet, model=classifier)}
    assert cuts[3] < 0.99 < cuts[6]
    assert bounds(docvit.split(packet, model=classifier, min_score=0.99)) == [(1, 5), (6, 6)]
    with pytest.raises(SettingError, match="from 0 to 1"):
        docvit.split(packet, model=classifier, min_score=2)


def test_blank_pages_at_the_edges_of_a_document_are_left_out_if_asked(classifier, make_packet, begins):
    path = make_packet(("blank", 1), ("bars", 1), ("blank", 1), ("bars", 1), ("blank", 2), ("text", 1))
    begins |= {6: 12.0}
    assert bounds(docvit.split(path, model=classifier)) == [(1, 6), (7, 7)]
    assert bounds(docvit.split(path, model=classifier, drop_blank=True)) == [(2, 4), (7, 7)]
    begins |= {1: 12.0}
    assert bounds(docvit.split(path, model=classifier, drop_blank=True)) == [(2, 4), (7, 7)]
    assert docvit.split(path, model=classifier)[0].label is None


def test_only_blank_pages(classifier, make_packet):
    (row,) = split.split_files(classifier, [make_packet(("blank", 3))], workers=0)
    assert isinstance(row.error, Empty)
    assert (row.num_pages, row.parts, row.blank) == (3, [], True)


def test_a_damaged_page_goes_with_the_document_before_it(classifier, make_packet, begins, monkeypatch):
    original = docvit.Document.render

    def render(self, index, *arguments, **options):
        if index in (0, 2):
            raise DocumentError(self.path, "damaged")
        return original(self, index, *arguments, **options)

    monkeypatch.setattr(docvit.Document, "render", render)
    path = make_packet(("bars", 3), ("text", 2))
    begins |= {3: 12.0}
    (row,) = split.split_files(classifier, [path], workers=0)
    assert bounds(row.parts) == [(1, 3), (4, 5)]
    assert row.note == "page 1, 3 could not be read: damaged"
    (row,) = split.split_files(classifier, [path], workers=0, drop_blank=True)
    assert bounds(row.parts) == [(1, 3), (4, 5)]  # who knows what is on them


def test_files_that_cannot_be_read_are_rows_and_the_rest_goes_on(classifier, packet, begins, tmp_path):
    (tmp_path / "secret.pdf").write_bytes(ENCRYPTED)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.4 no more")
    files = [tmp_path / "gone.pdf", tmp_path / "secret.pdf", tmp_path / "broken.pdf", packet]
    rows = list(split.split_files(classifier, files, workers=0))
    assert [row.error and row.error.kind for row in rows] == ["NotFound", "Encrypted", "Unreadable", None]
    assert rows[0].as_dict()["error"]["type"] == "NotFound"
    assert not rows[1].blank
    with pytest.raises(DocumentError, match="no such file"):
        docvit.split(tmp_path / "gone.pdf", model=classifier)


def test_windows_give_what_all_pages_at_once_give(classifier, make_packet, monkeypatch):
    """Pages keep their indices, every page counts once, and windows overlap by more than the head reads."""
    path = make_packet(*[("bars", 2), ("text", 3), ("blocks", 1)] * 4)
    stack = read_document(path, classifier.rendering)
    model = classifier.model
    scopes = DocumentClassifier(model.adapt(scopes="page"), device="cpu")  # else a window changes what blocks see
    ((whole,), _) = split.look(scopes, stack)
    seen = []
    original = DocViT.forward_features
    monkeypatch.setattr(
        DocViT, "forward_features", lambda m, b, stem: seen.append(b.page_index.tolist()) or original(m, b, stem)
    )
    monkeypatch.setattr(split, "WINDOW", 12)
    monkeypatch.setattr(split, "MARGIN", 4)
    ((windowed,), _) = split.look(scopes, stack)
    assert whole.whole is not None
    assert windowed.whole is None
    for one, other in zip(windowed[:3], whole[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=0.03)
    assert seen == [[*range(max(0, i - 4), min(24, i + 8))] for i in range(0, 24, 4)]


def test_parts_seen_at_once_have_the_labels_that_each_has_alone(classifier, make_packet, begins, monkeypatch):
    path = make_packet(("bars", 2), ("text", 3), ("blank", 2), ("blocks", 1), ("text", 4))
    begins |= {2: 12.0, 5: 12.0, 7: 12.0, 8: 12.0}
    stack = read_document(path, classifier.rendering)
    passes, original = [], DocViT.forward_features
    monkeypatch.setattr(DocViT, "forward_features", lambda m, *a: passes.append(1) or original(m, *a))
    parts = docvit.split(path, model=classifier)
    assert len(passes) == 2
    monkeypatch.setattr(split, "PART_PAGES", 3)  # the last part is read for itself
    assert docvit.split(path, model=classifier)[-1] == replace(classifier.label_pages(stack, 8, 12), cut=parts[-1].cut)
    assert len(passes) == 6
    for part in parts:
        alone = classifier.label_pages(stack, part.first - 1, part.last)
        assert part.label == alone.label
        assert part.score == pytest.approx(alone.score, abs=0.01)
    assert parts[2].label is None


def test_a_cut_batch_is_what_its_parts_packed_alone_are(classifier, make_packet):
    stack = read_document(make_packet(("bars", 2), ("text", 3), ("blocks", 1)), classifier.rendering)
    batch = classifier.model.pack([stack]).cut([0, 2, 5])
    parts = [
        stack.take(range(*span))._replace(indices=list(range(span[1] - span[0]))) for span in ((0, 2), (2, 5), (5, 6))
    ]
    expected = classifier.model.pack(parts)
    for name in ("patches", "page", "row", "col", "page_index", "page_bounds", "document_bounds"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name


def test_a_password_opens_a_file(classifier, tmp_path):
    (tmp_path / "secret.pdf").write_bytes(ENCRYPTED)
    with pytest.raises(Encrypted):
        docvit.split(tmp_path / "secret.pdf", model=classifier)
    assert bounds(docvit.split(tmp_path / "secret.pdf", model=classifier, password="secret")) == [(1, 1)]


def test_too_many_pages(classifier, make_packet, monkeypatch):
    monkeypatch.setattr(split, "MOST_PAGES", 4)
    (row,) = split.split_files(classifier, [make_packet(("bars", 5))], workers=0)
    assert isinstance(row.error, TooLarge)
    assert "5 pages, and at most 4" in row.error.message


def test_a_long_strip_is_one_page(classifier, make_pdf, begins):
    path = make_pdf("strip.pdf", [(100, 2000), (612, 792)])
    begins |= {1: 12.0}
    assert bounds(docvit.split(path, model=classifier)) == [(1, 1), (2, 2)]


def test_words_are_read_unless_they_are_not_wanted(classifier, packet, monkeypatch):
    asked = []
    monkeypatch.setattr(classify, "read_documents", lambda *a, words, **o: asked.append(words) or [])
    worded = DocumentClassifier(classifier.model.adapt(words=64), device="cpu")
    for wanted in (True, False):
        list(split.split_files(worded, [packet], words=wanted))
    assert asked == [True, False]


def test_a_model_without_the_head(trained, packet):
    with pytest.raises(ModelError, match="docvit train --packets"):
        docvit.split(packet, model=trained)


def test_tiffs_and_images(classifier, begins, tmp_path):
    pages = [Image.new("L", (64, 96), 255) for _ in range(3)]
    for page in pages:
        page.paste(0, (10, 10, 40, 20))
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    begins |= {1: 12.0}
    assert bounds(docvit.split(tmp_path / "scan.tif", model=classifier)) == [(1, 1), (2, 3)]
    assert bounds(docvit.split(pages, model=classifier)) == [(1, 1), (2, 3)]


def test_classify_says_so_where_the_model_is_sure_of_several_documents(classifier, packet, begins):
    begins |= {2: 13.0, 5: 1.0}
    row = classifier(packet)
    assert bounds(row.parts) == [(1, 2), (3, 6)]
    for part, own in zip(row.parts, docvit.split(packet, model=classifier, min_score=classify.SURE), strict=True):
        assert replace(part, cut=1, score=1) == replace(own, cut=1, score=1)
        assert part.score == pytest.approx(own.score, abs=0.01)  # other sums, perhaps in bfloat16
        assert part.cut == pytest.approx(own.cut, abs=1e-6)
    assert row.note == "holds 2 documents: docvit split cuts it"
    assert row.as_dict()["parts"][1]["first"] == 3
    assert classifier(packet, max_pages=3).parts == []  # not all pages are read
    begins.clear()
    assert (classifier(packet).parts, classifier(packet).note) == ([], "")
