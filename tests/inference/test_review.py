"""The review page: what it holds, how large it is, and what a person can do in a real browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from conftest import TINY, WORDS, worded_pdf
from PIL import Image

from docvit.data.labels import read_labelled
from docvit.documents.errors import Unreadable
from docvit.inference import review as reviewing
from docvit.inference.classify import DocumentClassifier
from docvit.inference.explain import Explanation, WordEvidence, explain
from docvit.inference.prediction import Page, Part, Prediction
from docvit.inference.review import _document, review, write_page
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT

CLASSES = ("bars", "blocks", "text")
ODD = ('say "hi", <b>.pdf', "<img src=x onerror=alert(1)>&amp;.pdf", "two\nlines.pdf", "caf\udce9.pdf")


def noise(height=256, width=192, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def found(path, *, label="form", score=0.5, pages=1, **more):
    """An explained prediction."""
    rows = [Page(i + 1, label, score, 1 / pages) for i in range(pages)]
    row = Prediction(str(path), label, score, {label: score}, pages, pages, [1 / pages] * pages, pages=rows, **more)
    return Explanation(row, [noise(64, 48, i) for i in range(pages)], [np.full((4, 3), np.nan, np.float32)] * pages)


def data_of(file):
    (text,) = re.findall(r'<script id="data" type="application/json">(.*)</script>', file.read_text(encoding="utf-8"))
    return json.loads(text)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY, num_classes=3, classes=CLASSES, words=64, word_dim=8))
    for weight in model.words.parameters():  # they begin at zero, where no word counts
        torch.nn.init.normal_(weight)
    return DocumentClassifier(model, device="cpu")


# --- what the page holds ---


def test_a_page_holds_what_the_model_says_and_what_counted(classifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, kind in enumerate(WORDS):
        (tmp_path / f"{kind}.pdf").write_bytes(worded_pdf(kind, number, 2 + number))
    paths = [*(f"{kind}.pdf" for kind in WORDS), "./bars.pdf", "missing.pdf"]
    rows = review(classifier, paths, "page.html", workers=0)
    data = data_of(tmp_path / "page.html")
    assert data["classes"] == list(CLASSES)
    assert [row.path for row in rows] == [entry["path"] for entry in data["documents"]]
    *read, missing = data["documents"]
    assert [entry["file"] for entry in read] == [str(tmp_path / f"{kind}.pdf") for kind in WORDS]
    for entry, row in zip(read, classifier.predict([entry["path"] for entry in read], workers=0), strict=True):
        assert (entry["label"], entry["num_pages"], len(entry["pages"])) == (row.label, row.num_pages, row.num_pages)
        assert dict(entry["scores"]) == pytest.approx(row.scores, abs=2e-3)
        assert [page["label"] for page in entry["pages"]] == [page.label for page in row.pages]
        evidence = explain(classifier, row.path)
        strongest = [[word.text, word.page] for word in evidence.words[: reviewing.MAX_WORDS]]
        assert [word[:2] for word in entry["words"]] == strongest != []
        for page, relevance in zip(entry["pages"], evidence.relevance, strict=True):
            drawn = [int(digit, 16) / 15 for digit in page["patches"]]
            assert drawn == pytest.approx(np.nan_to_num(relevance).flatten().tolist(), abs=0.04)
            assert page["columns"] == relevance.shape[1]
    assert missing["error"][0] == "NotFound"


def test_options_of_reading_arrive(classifier, tmp_path):
    (tmp_path / "a.pdf").write_bytes(worded_pdf("bars", 0, 5))
    for options, pages, words in (({}, 5, True), ({"max_pages": 2}, 2, True), ({"words": False}, 5, False)):
        (row,) = review(classifier, [tmp_path / "a.pdf"], tmp_path / "page.html", workers=0, **options)
        (entry,) = data_of(tmp_path / "page.html")["documents"]
        assert row.pages_read == len(entry["pages"]) == pages
        assert bool(entry["words"]) == bool(row.words_read) == words


def test_pictures_are_those_of_the_pages():
    page = np.full((256, 192, 3), 255, np.uint8)
    page[30:90, 40:150] = (200, 30, 40)
    entry = _document(Explanation(found("a.pdf").prediction, [page], []), 100_000)
    (held,) = entry["pages"]
    with Image.open(io.BytesIO(base64.b64decode(held["picture"]))) as picture:
        assert np.abs(np.asarray(picture.convert("RGB"), float) - page).mean() < 3
    assert held["aspect"] == 0.75


def test_a_blank_document_shows_its_pages_and_a_bad_one_its_error(classifier, tmp_path):
    Image.new("L", (60, 80), 255).save(tmp_path / "blank.png")
    review(classifier, [tmp_path / "blank.png"], tmp_path / "page.html", workers=0)
    (entry,) = data_of(tmp_path / "page.html")["documents"]
    assert entry["error"][0] == "Empty"
    assert entry["pages"][0]["blank"]
    assert entry["pages"][0]["picture"]


def test_parts_turned_pages_and_what_is_unsure_show_up():
    of = found("packet.pdf", pages=3)
    pages = [replace(page, turned=90 * i) for i, page in enumerate(of.prediction.pages)]
    parts = [Part(1, 2, "form", 0.75), Part(3, 3)]
    row = replace(of.prediction, pages=pages, parts=parts, known=0.25, unsure=True)
    entry = _document(Explanation(row, of.pages, of.relevance), 10_000)
    assert (entry["known"], entry["unsure"]) == (0.25, True)
    assert entry["parts"] == [[1, 2, "form", 0.75], [3, 3, None, None]]
    assert [page.get("turned", 0) for page in entry["pages"]] == [0, 90, 180]


@pytest.mark.parametrize("pages", [1, 8, 40])
@pytest.mark.parametrize("room", [11_000, 40_000])
def test_a_document_takes_its_share_of_bytes(room, pages):
    """Noise is the worst that pages can be; 2,000 documents of 11,000 bytes make a page of 22 MB."""
    of = found("a.pdf", pages=pages)
    of.words.extend(WordEvidence(f"word{i}", 1, (0.1, 0.1, 0.2, 0.2), 0.5) for i in range(50))
    entry = _document(Explanation(of.prediction, [noise(seed=i) for i in range(pages)], [], of.words), room)
    held = [page for page in entry["pages"] if "picture" in page]
    assert entry["pages"][0] in held
    assert len(json.dumps(entry)) < 1.1 * room + 100 * pages


def test_what_one_document_leaves_others_take(classifier, tmp_path, monkeypatch):
    rooms = []
    monkeypatch.setattr(reviewing, "_document", lambda found, room: rooms.append(room) or {"file": "x" * 1000})
    paths = [tmp_path / f"{i}.pdf" for i in range(4)]
    review(classifier, paths, tmp_path / "page.html", workers=0)
    assert rooms[0] == reviewing.MAX_BYTES // 4
    assert rooms[3] == reviewing.MAX_BYTES - 3 * len(json.dumps({"file": "x" * 1000}))


def test_names_of_files_pass_unharmed_and_nothing_comes_from_elsewhere(tmp_path):
    names = [str(tmp_path / name) for name in (*ODD, "</script><img src=x onerror=alert(1)>")]
    write_page(tmp_path / "page.html", [_document(found(name), 5000) for name in names], CLASSES)
    assert [entry["file"] for entry in data_of(tmp_path / "page.html")["documents"]] == names
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text.count("</script>") == 2
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|<link|\bsrc=", text.replace(re.findall(r'id="data".*', text)[0], ""))


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("needs Chromium or Chrome on the PATH")
    with Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture
def pile(browser, tmp_path):
    """Six documents, of which one cannot be read, on a page that is open; their paths."""
    names = ("sure.pdf", *ODD)
    for name in names:
        (tmp_path / name).write_bytes(b"")
    scores = (0.9, 0.3, 0.8, 0.6, 0.7)
    labels = ("form", "form", "form", "text", "text")
    rows = [found(tmp_path / name, score=s, label=of) for name, s, of in zip(names, scores, labels, strict=True)]
    rows.append(Explanation(Prediction("bad.pdf", error=Unreadable("bad.pdf", "cut <off>")), [], []))
    write_page(tmp_path / "page.html", [_document(row, 20_000) for row in rows], CLASSES)
    browser.errors.clear()
    browser.open((tmp_path / "page.html").as_uri())
    yield [os.fspath(tmp_path / name) for name in names]
    assert browser.errors == []
    browser.run("localStorage.clear()")


SHOWN = "visible().map(d => d.file)"


def exported(browser, button):
    browser.click(button)
    return browser.downloaded("labels.csv")


def test_the_wall_is_grouped_by_label_and_the_least_sure_come_first(browser, pile):
    sure, a, b, c, _ = pile
    heads = browser.run("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert heads == ["form3 documents", "text2 documents", "No label1 document"]
    assert browser.run(SHOWN)[:4] == [a, b, sure, c]
    browser.wait("[...document.querySelectorAll('.tile img')].every(i => i.complete && i.naturalWidth > 0)")


def test_filter_correct_three_and_export(browser, pile):
    sure, a, b, *_ = pile
    assert browser.run("$('#corrected').disabled")
    browser.click("#search")
    browser.press(*"HI", "Escape")  # Escape empties the search
    browser.press("/", *"say")
    assert browser.run(SHOWN) == [a]
    browser.run("document.activeElement.blur()")
    browser.press("l", *"Lease", "Enter")
    browser.click("#search")
    browser.press("Escape")
    assert len(browser.run(SHOWN)) == 6
    browser.press("ArrowRight", ".", "ArrowRight", "l", *"blo", "Enter")
    assert browser.run("$('#corrected').textContent") == "Export corrected (3)"
    rows = list(csv.reader(io.StringIO(exported(browser, "#corrected").decode(), newline="")))
    assert rows[0] == ["path", "label"]
    assert dict(rows[1:]) == {a: "Lease", b: "Lease", sure: "blocks"}


def test_the_exported_csv_is_read_for_training_whatever_files_are_called(browser, pile, tmp_path):
    (tmp_path / "labels.csv").write_bytes(exported(browser, "#all"))
    labelled = read_labelled(tmp_path / "labels.csv")
    assert dict(zip(labelled.paths, labelled.labels, strict=True)) == dict(zip(pile, [0, 0, 0, 1, 1], strict=True))
    assert labelled.classes == ("form", "text")


def test_labels_outlive_a_reload_and_can_be_taken_back(browser, pile):
    browser.press("c", "ArrowRight", "l", *"ow", "Enter", "ArrowRight", " ", "ArrowRight", " ", "l", *"OW", "Enter")
    labels = {pile[1]: "form", pile[2]: "ow", pile[0]: "ow", pile[3]: "ow"}  # another case is no other label
    given = "Object.fromEntries(given)"
    assert browser.run(given) == labels
    browser.call("Page.reload")
    browser.wait("typeof given !== 'undefined' && performance.getEntriesByType('navigation')[0].type === 'reload'")
    browser.wait("document.readyState === 'complete'")
    assert browser.run(given) == labels
    assert browser.run("$('#corrected').textContent") == "Export corrected (4)"
    browser.press("Delete")
    assert browser.run("[...given.values()]") == ["ow"] * 3
    browser.press("u")
    assert browser.run("given.size") == 4


def test_one_document_shows_all_its_pages_and_is_labelled_there(browser, tmp_path):
    of = found(tmp_path / "packet.pdf", pages=4)
    of.words.append(WordEvidence("<Applicant>", 2, (0.1, 0.2, 0.4, 0.3), 1.0))
    of.relevance[0] = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)
    entry = _document(of, 20_000)
    entry["parts"] = [[1, 2, "form", 0.75], [3, 4, None, None]]
    entry["pages"][1]["turned"] = 270
    entry["pages"][2]["blank"] = True
    entry["pages"].append({"number": 5, "failed": True})
    write_page(tmp_path / "page.html", [entry, _document(found(tmp_path / "other.pdf", score=0.9), 20_000)], CLASSES)
    browser.open((tmp_path / "page.html").as_uri())
    browser.click(".tile")
    captions = browser.run("[...document.querySelectorAll('figcaption')].map(c => c.textContent)")
    assert len(captions) == 5
    assert "turned 270°" in captions[1]
    assert "blank" in captions[2]
    assert "failed" in captions[4]
    assert browser.run("[...document.querySelectorAll('h4')].map(h => h.textContent)") == [
        "Part 1: pages 1–2, form 75 %",
        "Part 2: pages 3–4",
    ]
    assert browser.run("$('#facts .words').textContent") == "<Applicant> 2"
    assert browser.run("$('.word').parentElement.querySelector('img').alt") == "Page 2"
    assert browser.run("[$('canvas').width, $('canvas').height]") == [3, 4]
    browser.press("l", *"news", "Enter")
    assert browser.run("$('#facts .now').textContent") == "news"
    browser.press("ArrowRight", "c", "Escape")
    assert browser.run("[...given.values()]") == ["news", "form"]
    assert not browser.run("$('#view').open")
    browser.run("localStorage.clear()")
