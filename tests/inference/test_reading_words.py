"""Words in predictions: read exactly where the model reads any, and rows that say so."""

from __future__ import annotations

import importlib.util
import json
from html.parser import HTMLParser

import pytest
import torch
from conftest import TINY, classed_pdf, pdf_bytes
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from docvit.data.labels import LabelledDocuments
from docvit.documents.errors import Encrypted, NotFound
from docvit.documents.pages import read_document
from docvit.errors import SettingError
from docvit.evaluation.compare import compare
from docvit.inference.classify import DocumentClassifier
from docvit.inference.prediction import Prediction
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT

needs_ocr = pytest.mark.skipif(importlib.util.find_spec("rapidocr") is None, reason="needs docvit[ocr]")
FONT = "/Resources<</Font<</F1<</Type/Font/Subtype/Type1/BaseFont/Courier>>>>>>"
CLASSES = ("a", "b", "c")


def model_with_words(words=256, **settings):
    """A model whose words count: their maps are not zero."""
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY | settings, num_classes=3, classes=CLASSES, words=words, word_dim=8))
    nn.init.normal_(model.head.weight)
    if model.words is not None:
        nn.init.normal_(model.words.to_pages.weight, std=3)
        nn.init.normal_(model.words.to_patches.weight, std=3)
    return model


@pytest.fixture(scope="module")
def classifier():
    return DocumentClassifier(model_with_words(), device="cpu")


@pytest.fixture
def path(tmp_path):
    """Two pages with seven words."""
    contents = [
        b"BT /F1 40 Tf 60 600 Td (an invoice for tea) Tj ET",
        b"BT /F1 40 Tf 60 100 Td (total amount due) Tj ET",
    ]
    (tmp_path / "a.pdf").write_bytes(pdf_bytes([(612, 792)] * 2, extra=FONT, contents=contents))
    return tmp_path / "a.pdf"


@pytest.fixture
def drawn(tmp_path):
    """Without words."""
    (tmp_path / "drawn.pdf").write_bytes(classed_pdf("bars", 2))
    return tmp_path / "drawn.pdf"


@pytest.fixture
def recorded(monkeypatch):
    """What reading is asked for; nothing is read."""
    recorded = []

    def read(paths, rendering, **options):
        recorded.append(options)
        return (NotFound(str(path), "gone") for path in paths)

    for module in ("inference.classify", "evaluation.compare"):
        monkeypatch.setattr(f"docvit.{module}.read_documents", read)
    return recorded


def test_scores_are_the_model_s_with_words(classifier, path):
    model = classifier.model
    with torch.no_grad():
        seen = model.pack([read_document(path, classifier.rendering, words=True)])
        expected, by_pixels = (model(batch).softmax(1)[0].tolist() for batch in (seen, seen.without_words()))
    assert expected != pytest.approx(by_pixels, abs=0.1)
    for row in (classifier(path), *classifier.predict([path], workers=1), *classifier([path])):
        assert [row.scores[name] for name in CLASSES] == pytest.approx(expected, abs=0.02)
        assert (row.words_read, row.words_from) == (7, "text")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_without_words_gives_to_the_bit_what_pixels_alone_give(classifier, path, drawn, workers):
    (row,), (pixels,) = (classifier.predict([drawn], workers=workers, words=w) for w in (True, False))
    assert (row.words_read, row.words_from, pixels.words_read, pixels.words_from) == (0, None, None, None)
    assert row.scores == pixels.scores
    assert [page.score for page in row.pages] == [page.score for page in pixels.pages]
    assert classifier(drawn).scores == classifier(drawn, words=False).scores
    assert classifier(path).scores != classifier(path, words=False).scores
    assert classifier([path])[0].scores != classifier([path], words=False)[0].scores


def test_rows_in_json_and_the_words_of_the_pages_that_are_used(classifier, path):
    row = json.loads(json.dumps(classifier(path).as_dict()))
    assert (row["words_read"], row["words_from"]) == (7, "text")
    (last,) = classifier.predict([path], strategy="last", workers=0)
    assert (last.words_read, last.words_from) == (3, "text")
    (votes,) = classifier.predict([path], strategy="soft-vote", workers=0)
    assert (votes.words_read, votes.words_from) == (7, "text")
    (tiled,) = classifier.predict([path], strategy="grid", workers=0)  # the words of tiles are not read
    assert (tiled.words_read, tiled.words_from) == (None, None)


def test_a_model_without_words_never_reads_them(recorded, caplog):
    classifier = DocumentClassifier(model_with_words(words=0), device="cpu")
    list(classifier.predict(["a.pdf"]))
    assert not caplog.text
    list(classifier.predict(["a.pdf"], ocr_pages=2))
    assert "nothing is read by OCR" in caplog.text
    assert [(o["words"], o["ocr_pages"], o["timeout"]) for o in recorded] == [(False, 0, 60)] * 2


def test_a_model_without_words_says_none_of_a_stack_that_has_some(path):
    classifier = DocumentClassifier(model_with_words(words=0), device="cpu")
    (row,) = classifier.classify_pages([read_document(path, classifier.rendering, words=True)])
    assert (row.words_read, row.words_from) == (None, None)


def test_words_and_ocr_are_asked_for_together(classifier, recorded):
    list(classifier.predict(["a.pdf"], ocr_pages=3, timeout=20))
    list(classifier.predict(["a.pdf"], ocr_pages=3, timeout=20, words=False))
    assert [(o["words"], o["ocr_pages"], o["timeout"]) for o in recorded] == [(True, 3, 20), (False, 0, 20)]


@needs_ocr
def test_a_scan_is_read_when_asked(classifier, tmp_path):
    page = Image.new("L", (850, 1100), 255)
    ImageDraw.Draw(page).text((100, 300), "Invoice number", 0, ImageFont.load_default(48))
    page.save(tmp_path / "scan.tif", save_all=True, append_images=[page])
    for row in (
        *classifier.predict([tmp_path / "scan.tif"], ocr_pages=1),
        classifier(tmp_path / "scan.tif", ocr_pages=1),
    ):
        assert (row.words_read, row.words_from) == (2, "ocr")
    (unread,) = classifier.predict([tmp_path / "scan.tif"], workers=0)
    assert (unread.words_read, unread.words_from) == (0, None)
    assert row.scores != unread.scores


# --- comparison


def test_models_are_compared_on_words_if_any_of_them_reads_words(path):
    pixels, words = DocViT(DocViTConfig(**TINY, num_classes=3, classes=CLASSES)), model_with_words()
    label = DocumentClassifier(words, device="cpu")(path).label
    without = DocumentClassifier(words, device="cpu")(path, words=False).label
    assert label != without
    data = LabelledDocuments((str(path),), (CLASSES.index(label),), CLASSES)
    for models in ({"pixels": pixels, "words": words}, {"words": words, "pixels": pixels}):
        right = [compare(models, data, workers=0, device="cpu", words=w).models["words"].quality.accuracy
                 for w in (True, False)]  # fmt: skip
        assert right == [1, 0]


def test_comparing_hands_on_how_words_are_read(recorded):
    data = LabelledDocuments(("a.pdf",), (0,), CLASSES)
    for options in ({}, {"words": False}, {"ocr_pages": 2}):
        with pytest.raises(SettingError, match="none of the documents"):
            compare({"words": model_with_words()}, data, device="cpu", **options)
    assert [(o["words"], o["ocr_pages"]) for o in recorded] == [(True, 0), (False, 0), (True, 2)]


# --- top_k and notebooks


def test_the_most_probable_classes_alone(classifier, path):
    every = classifier(path)
    for row in (
        classifier(path, top_k=2),
        classifier([path], top_k=2)[0],
        *classifier.predict([path], top_k=2, workers=0),
    ):
        assert list(row.scores) == list(every.scores)[:2]
        assert (row.label, row.score) == (every.label, pytest.approx(every.score, abs=0.02))
    assert classifier(path, top_k=9).scores == every.scores
    with pytest.raises(SettingError, match="top_k must be at least 1, not 0"):
        classifier(path, top_k=0)


class Tags(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.said = set(), ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, data):
        self.said += data + "\n"


def test_a_notebook_shows_a_table_with_nothing_of_the_file_s_name_in_its_markup():
    row = Prediction("<script>a&b\udcff.pdf", "<b>", 0.75, {"<b>": 0.75, "c": 0.25}, 3, 2, note="<i>", words_read=9,
                     words_from="text")  # fmt: skip
    shown = Tags(row._repr_html_())
    assert shown.tags == {"div", "code", "table", "tr", "td", "meter", "small"}
    for part in ("<script>a&b?.pdf\n", "<b>\n75.0%\n", "c\n25.0%\n", "2 of 3 pages read; 9 words from text; <i>"):
        assert part in shown.said
    row._repr_html_().encode()


def test_a_notebook_shows_why_there_is_no_label():
    error = Encrypted("a.pdf", "it has a <password>")
    shown = Tags(Prediction("a.pdf", error=error)._repr_html_())
    assert "Encrypted\n: it has a <password>" in shown.said
    assert "script" not in shown.tags
