"""Explanations: evidence of patches against its definition, and a picture of it for any document."""

from __future__ import annotations

import errno
import itertools
import os

import numpy as np
import pytest
import torch
from conftest import ENCRYPTED, TINY, classed_pdf, pdf_bytes
from matplotlib.figure import Figure
from PIL import Image

from docvit.documents.errors import Empty, Encrypted, NotFound
from docvit.documents.hashing import hash_ngrams
from docvit.documents.pages import PageStack, read_document
from docvit.inference.classify import DocumentClassifier
from docvit.inference.explain import MAX_DRAWN, Explanation, WordEvidence, evidence_of_ngrams, explain
from docvit.inference.prediction import Page, Prediction
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT


@pytest.fixture(scope="module")
def classifier(trained):
    return DocumentClassifier.from_pretrained(trained, device="cpu")


@pytest.fixture
def pdf(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(classed_pdf("blocks", 3))
    return path


def test_maps_cover_the_pages_and_blank_patches_say_nothing(classifier, pdf):
    found = explain(classifier, pdf)
    assert found.prediction.label == classifier(pdf).label == "blocks"
    assert len(found.pages) == len(found.relevance) == 3
    for page, relevance in zip(found.pages, found.relevance, strict=True):
        assert relevance.shape == (page.shape[0] // 16, page.shape[1] // 16)
        cells = page.reshape(relevance.shape[0], 16, relevance.shape[1], 16).astype(int)
        blank = cells.max((1, 3)) - cells.min((1, 3)) <= 8
        assert np.array_equal(np.isnan(relevance), blank)
    evidence = np.concatenate([r.flatten() for r in found.relevance])
    assert np.nanmin(evidence) >= 0
    assert np.nanmax(evidence) == 1


def test_evidence_is_gradient_times_activation(classifier, pdf):
    found, model = explain(classifier, pdf), classifier.model
    batch = model.pack([PageStack("", found.pages, [0, 1, 2], 3)])
    nudge = torch.zeros(batch.num_patches, requires_grad=True)
    rows = torch.cat([1 + i + torch.arange(int(a), int(b)) for i, (a, b) in enumerate(_pairs(batch.page_bounds))])
    block = model.blocks[-1]

    def scale(module, args):  # every patch's token times 1 + its nudge: the derivative is what is asked
        x = args[0]
        return (x.index_copy(0, rows, x[rows] * (1 + nudge[:, None])), *args[1:])

    hook = block.register_forward_pre_hook(scale)
    try:
        model.forward_intermediates(batch)["logits"][0, classifier.classes.index("blocks")].backward()
    finally:
        hook.remove()
    expected = nudge.grad.clamp(min=0)
    ours = np.concatenate([r[~np.isnan(r)] for r in found.relevance])
    np.testing.assert_allclose(ours, (expected / expected.max()).numpy(), atol=1e-4)


def test_in_a_model_without_blocks_no_patch_has_relevance(pdf):
    settings = TINY | {"depth": 0, "stem": "ink", "pooling": "mean+std+first"}
    model = DocViT(DocViTConfig(**settings, num_classes=3, classes=("a", "b", "c")))
    found = explain(DocumentClassifier(model, device="cpu"), pdf)
    assert all((relevance[~np.isnan(relevance)] == 0).all() for relevance in found.relevance)
    found.save(pdf.with_suffix(".png"))


def _pairs(bounds):
    return itertools.pairwise(bounds)


@pytest.mark.parametrize(
    "name", ["plain.pdf", "a $b^{ c$.pdf", "Prüfung – 試験.pdf", "two\nlines\udcff.pdf", "long " * 40 + ".pdf"]
)
def test_a_picture_is_drawn_whatever_the_file_is_called(classifier, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(classed_pdf("text", 2))
    file = tmp_path / "deep" / "picture.png"
    explain(classifier, path).save(file)
    with Image.open(file) as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 200
    assert np.ptp(pixels, axis=2).max() > 60  # there is colour on it


def test_a_full_disk_is_named_and_leaves_nothing(classifier, pdf, tmp_path, monkeypatch):
    def half(_, file, **options):
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space left on device") as caught:
        explain(classifier, pdf).save(tmp_path / "seen" / "a.png")
    assert caught.value.filename == str(tmp_path / "seen" / "a.png")
    assert list((tmp_path / "seen").iterdir()) == []


def test_a_long_document_shows_its_most_relevant_pages_in_their_order(classifier, tmp_path, monkeypatch):
    figures, original = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **o: figures.append(figure) or original(figure, *a, **o))
    count = MAX_DRAWN + 5
    relevance = np.random.default_rng(0).permutation(np.arange(1.0, count + 1))
    pages = [Page(number, failed=number == 3) for number in range(1, count + 2)]
    prediction = Prediction("long.pdf", "text", 0.9, pages=pages, page_relevance=relevance.tolist())
    Explanation(prediction, [np.full((32, 32), 255, np.uint8)] * count, [np.ones((2, 2), np.float32)] * count).save(
        tmp_path / "long.png"
    )
    titles = [axes.get_title() for axes in figures[0].axes if axes.get_title()]
    shown = [int(title.split()[1]) for title in titles]
    read = [page.number for page in pages if not page.failed]
    assert shown == [number for number, share in zip(read, relevance, strict=True) if share > 5]


def test_no_more_pages_are_explained_than_are_read(classifier, tmp_path):
    path = tmp_path / "five.pdf"
    path.write_bytes(classed_pdf("text", 5))
    assert len(explain(classifier, path).relevance) == 5
    assert len(explain(classifier, path, max_pages=3).relevance) == 3


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_blank_pages_a_single_block_and_colour(tmp_path, mode):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY | {"depth": 1, "in_chans": 1 if mode == "L" else 3}, num_classes=2))
    classifier = DocumentClassifier(model, device="cpu")
    Image.linear_gradient("L").resize((64, 96)).save(tmp_path / "page.png")
    found = explain(classifier, tmp_path / "page.png")
    found.save(tmp_path / "out.png")
    assert not np.isnan(found.relevance[0]).all()
    Image.new("L", (64, 96), "white").save(tmp_path / "page.png")
    with pytest.raises(Empty, match="blank"):
        explain(classifier, tmp_path / "page.png")


def test_a_page_with_a_single_patch_that_is_not_blank(classifier):
    page = np.full((32, 32), 255, np.uint8)
    page[20:30, 20:30] = 0
    (relevance,) = explain(classifier, PageStack("a.png", [page], [0], 1)).relevance
    assert np.isnan(relevance).tolist() == [[True, True], [True, False]]


def test_a_file_that_cannot_be_read(classifier, tmp_path):
    with pytest.raises(NotFound):
        explain(classifier, tmp_path / "gone.pdf")


def test_a_frozen_model_is_explained_too_and_stays_frozen(trained, pdf):
    frozen = DocumentClassifier.from_pretrained(trained, device="cpu")
    expected = explain(frozen, pdf)
    frozen.model.requires_grad_(False)
    for ours, theirs in zip(explain(frozen, pdf).relevance, expected.relevance, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not any(weight.requires_grad for weight in frozen.model.parameters())


# --- words

FONT = "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Courier>>>>>>"
LINES = ([b"the invoice", b"for the tea"], [b"amount due"])


@pytest.fixture
def written(tmp_path):
    """Two pages with seven words, "the" twice; two of them lie in one patch."""
    contents = [
        b"".join(b"BT /F1 30 Tf 60 %d Td (%s) Tj ET " % (600 - 300 * i, line) for i, line in enumerate(page))
        for page in LINES
    ]
    (tmp_path / "written.pdf").write_bytes(pdf_bytes([(612, 792)] * 2, extra=FONT, contents=contents))
    return tmp_path / "written.pdf"


def reader(**settings):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY | settings, num_classes=3, classes=("a", "b", "c"), words=512, word_dim=8))
    torch.nn.init.normal_(model.head.weight)
    model.words.idf.uniform_(1, 3)
    for layer in (model.words.to_pages, model.words.to_patches):
        if layer is not None:
            torch.nn.init.normal_(layer.weight)
    return DocumentClassifier(model, device="cpu")


def vectors_of_words(model, words, bags):
    """What each word adds to its bag's vector, by loops: (words, width). `bags` names the bag of each word."""
    table, idf, vectors = model.words.embedding.weight.detach(), model.words.idf, []
    ids = [(hash_ngrams([word.text])[0] % model.words.buckets).tolist() for word in words]
    for own, bag in zip(ids, bags, strict=True):
        together = [i for other, name in zip(ids, bags, strict=True) if name == bag for i in other]
        weight = {i: (1 + np.log(together.count(i))) * float(idf[i]) for i in together}
        norm = np.sqrt(sum(w * w for w in weight.values()))
        vectors.append(sum(weight[i] / norm / together.count(i) * table[i] for i in own))
    return torch.stack(vectors)


@pytest.mark.parametrize("settings", [{}, {"depth": 0, "stem": "ink", "pooling": "mean+std+first"}], ids=str)
def test_evidence_of_a_word_is_the_derivative_by_the_strength_of_its_vectors(written, settings):
    classifier = reader(**settings)
    found, model = explain(classifier, written), classifier.model
    stack = read_document(written, classifier.rendering, words=True)
    batch = model.pack([stack])
    words = [(page, word) for page, of_page in enumerate(stack.words) for word in of_page]
    assert [word.text for _, word in words] == ["the", "invoice", "for", "the", "tea", "amount", "due"]
    addresses = zip(batch.page.tolist(), batch.row.tolist(), batch.col.tolist(), strict=True)
    patches = {address: i for i, address in enumerate(addresses)}
    under = []
    for page, word in words:
        (left, top, right, bottom), (rows, cols) = word.box, batch.grids[page].tolist()
        under.append(patches[page, int((top + bottom) / 2 * rows), int((left + right) / 2 * cols)])
    pages = [page for page, _ in words]
    assert len(set(under)) < len(words)
    strength = torch.ones(len(words), requires_grad=True)
    bags = {model.words.to_pages: (pages, batch.num_pages)}
    if model.words.to_patches is not None:
        bags[model.words.to_patches] = (under, batch.num_patches)

    def scale(layer, inputs):
        places, count = bags[layer]
        scaled = vectors_of_words(model, [w for _, w in words], places) * strength[:, None]
        ours = torch.zeros(count, scaled.shape[1]).index_add(0, torch.tensor(places), scaled)
        torch.testing.assert_close(ours, inputs[0])
        return (ours,)

    hooks = [layer.register_forward_pre_hook(scale) for layer in bags]
    try:
        model(batch)[0, classifier.classes.index(found.prediction.label)].backward()
    finally:
        for hook in hooks:
            hook.remove()
    expected = strength.grad / strength.grad.max()
    order = [i for i in expected.argsort(descending=True).tolist() if expected[i] > 0]
    assert [(w.text, w.page, w.box) for w in found.words] == [
        (words[i][1].text, pages[i] + 1, words[i][1].box) for i in order
    ]
    assert [w.relevance for w in found.words] == pytest.approx(expected[order].tolist(), abs=1e-4)
    assert 0 < len(found.words) < len(words)


def test_words_that_count_directly_are_evidence_too(written):
    """With both maps to tokens at zero, the evidence of all words is their part of the logit."""
    classifier = reader(document_words=4)
    model = classifier.model
    for layer in (model.words.to_pages, model.words.to_patches):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.normal_(model.words.of_documents.weight)
    batch = model.pack([read_document(written, classifier.rendering, words=True)])
    with torch.inference_mode():
        direct = model.head.weight[:, -4:] @ model.forward_features(batch).words[0][0]
    for label in range(3):
        evidence = evidence_of_ngrams(model, batch, label)
        assert float(evidence.sum()) == pytest.approx(float(direct[label]), abs=1e-4)


def test_words_are_explained_where_the_model_has_seen_them(classifier, written):
    assert explain(reader(), written, words=False).words == []
    assert explain(classifier, written).words == []  # a model without words
    assert {w.page for w in explain(reader(), written, max_pages=1).words} == {1}
    assert explain(reader(), written).prediction.words_read == 7


def test_the_strongest_words_are_listed_and_framed_on_the_pages_shown(tmp_path, monkeypatch):
    figures, original = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **o: figures.append(figure) or original(figure, *a, **o))
    prediction = Prediction("a.pdf", "text", 0.9, pages=[Page(1), Page(2)], page_relevance=[0.5, 0.5])
    words = [WordEvidence("$odd^{", 2, (0.25, 0.5, 0.75, 0.75), 1.0), WordEvidence("due", 1, (0, 0, 0.5, 0.5), 0.5)]
    Explanation(prediction, [np.full((32, 64), 255, np.uint8)] * 2, [np.ones((2, 4), np.float32)] * 2, words).save(
        tmp_path / "a.png"
    )
    (figure,) = figures
    assert "strongest words (page): $odd^{ (2), due (1)" in figure._supxlabel.get_text()
    framed = [[patch.get_bbox().bounds for patch in axes.patches[1:]] for axes in figure.axes]
    assert framed == [[(-1.5, -1.5, 34, 18)], [(14.5, 14.5, 34, 10)]]


def test_a_document_with_a_password_is_explained_with_it(classifier, tmp_path):
    (tmp_path / "a.pdf").write_bytes(ENCRYPTED)
    with pytest.raises(Encrypted):
        explain(classifier, tmp_path / "a.pdf")
    assert explain(classifier, tmp_path / "a.pdf", password="secret").prediction.label
