"""What a classifier takes, where it may be called, and what its rows say of odd documents."""

from __future__ import annotations

import io
import json
import math
import multiprocessing
import os
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import TINY, classed_pdf, pdf_bytes, process
from PIL import Image

from docvit.documents import workers
from docvit.documents.errors import Empty, NotFound, Timeout, Unsupported
from docvit.inference.classify import DocumentClassifier
from docvit.inference.split import split_files
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT

forked = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


@pytest.fixture(scope="module")
def classifier(trained):
    return DocumentClassifier.from_pretrained(trained, device="cpu")


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "a.pdf"
    file.write_bytes(classed_pdf("blocks", 3))
    return file


# --- one in, one out; a list in, a list out


def test_one_document_however_it_is_held(classifier, path):
    content = path.read_bytes()
    expected = classifier(path)
    for data in (str(path), content, io.BytesIO(content), path.open("rb")):
        assert classifier(data).scores == pytest.approx(expected.scores, abs=1e-6)
        (row,) = classifier.predict(data if not isinstance(data, io.IOBase) else content, workers=0)
        assert row.scores == pytest.approx(expected.scores, abs=0.02)


def test_a_list_gives_a_list_and_a_list_of_pages_one_prediction(classifier, path):
    rows = classifier([path, "gone.pdf", path.read_bytes()])
    assert [row.path for row in rows] == [str(path), "gone.pdf", "<bytes>"]
    assert isinstance(rows[1].error, NotFound)
    image = Image.linear_gradient("L").resize((60, 90))
    assert classifier([image, image]).num_pages == 2
    assert [row.num_pages for row in classifier([[image, image], image])] == [2, 1]
    assert [row.num_pages for row in classifier.predict([image, image], workers=0)] == [1, 1]
    assert classifier([]) == []


def test_a_column_of_a_data_set_is_many_documents(classifier):
    class Column:
        def __getitem__(self, index):
            if index == 3:
                raise IndexError
            return Image.linear_gradient("L").resize((60, 90))

        def __iter__(self):
            return (self[i] for i in range(3))

        def __len__(self):
            return 3

    assert len(classifier(Column())) == len(list(classifier.predict(Column(), workers=0))) == 3


def test_what_is_no_document_is_one_short_error(classifier):
    for wrong in (7, [7]):
        with pytest.raises(ValueError, match="a document is a path, bytes"):
            classifier(wrong)


# --- limits, threads, processes


@forked
def test_a_call_has_the_limits_of_a_stream(classifier, path, monkeypatch):
    monkeypatch.setattr(workers, "read_document", lambda *a, **o: __import__("time").sleep(60))
    workers._standing_pool.cache_clear()  # its workers would not know of this
    try:
        with pytest.raises(Timeout, match=r"0\.5 seconds"):
            classifier(path, timeout=0.5)
    finally:
        workers._standing_pool.cache_clear()
    monkeypatch.undo()
    assert classifier(path).label == "blocks"


def test_many_threads_get_the_labels_of_one(classifier, tmp_path):
    paths = []
    for i, kind in enumerate(("text", "bars", "blocks", "text")):
        (tmp_path / f"{i}.pdf").write_bytes(classed_pdf(kind, 1 + i))
        paths.append(tmp_path / f"{i}.pdf")
    expected = [classifier(p).label for p in paths]
    with ThreadPoolExecutor(6) as threads:
        assert [row.label for row in threads.map(classifier, paths * 5)] == expected * 5


def test_a_process_that_may_have_no_children_reads_by_itself(classifier, path, monkeypatch, caplog):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    workers._warn_of_no_workers.cache_clear()
    assert [row.label for row in classifier.predict([path])] == ["blocks"]
    assert classifier(path).label == "blocks"
    assert caplog.text.count("workers=0") == 1


def test_a_script_without_a_guard_reads_where_processes_are_spawned(path, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import multiprocessing
        multiprocessing.set_start_method("spawn")
        from docvit.documents.workers import read_alone, read_documents
        print([d.num_pages for d in read_documents([{str(path)!r}], workers=1)], read_alone({str(path)!r}).num_pages)
        """)
    )
    run = f"import runpy, sys; sys.argv = [{str(script)!r}]; runpy.run_path({str(script)!r}, run_name='__main__')"
    out, err = process(run).communicate(timeout=300)
    assert out.strip() == "[3] 3", err


# --- rows


def test_a_damaged_page_is_named_and_the_others_decide(classifier):
    kids = " ".join("99 0 R" if i == 2 else f"{3 + 2 * i} 0 R" for i in range(5))
    row = classifier(pdf_bytes([(612, 792)] * 5, kids=kids))
    assert (row.num_pages, row.pages_read, len(row.page_relevance)) == (5, 4, 4)
    assert [page.number for page in row.pages if page.failed] == [3]
    assert [page.number for page in row.pages] == [1, 2, 3, 4, 5]
    assert row.note.startswith("page 3 could not be read: page 3 of 5 is damaged")


def test_json_says_which_page_has_which_relevance(classifier, path):
    row = json.loads(json.dumps(classifier(path, max_pages=2).as_dict()))
    assert [page["number"] for page in row["pages"]] == [1, 3]
    assert [page["relevance"] for page in row["pages"]] == row["page_relevance"]


def test_labels_of_pages_are_the_model_s(classifier, path):
    row, model = classifier(path), classifier.model
    from docvit.documents.pages import read_document

    batch = model.pack([read_document(path, classifier.rendering)])
    with torch.no_grad():
        by_page = model.forward_pages(model.forward_features(batch)).softmax(1)
    assert [page.label for page in row.pages] == [classifier.classes[i] for i in by_page.argmax(1)]
    assert [page.score for page in row.pages] == pytest.approx(by_page.amax(1).tolist(), abs=0.02)


@pytest.mark.parametrize("drawing", [b"", b"0 g 0 0 612 792 re f"])
def test_a_blank_document_is_said_to_be_blank(classifier, tmp_path, drawing):
    row, mixed = classifier.predict(
        [
            pdf_bytes([(612, 792)] * 2, contents=[drawing] * 2),
            pdf_bytes([(612, 792)] * 2, contents=[drawing, b"50 50 300 300 re f 1 g 99 99 99 99 re f"]),
        ],
        workers=0,
    )
    assert isinstance(row.error, Empty)
    assert "blank" in row.error.message
    assert (row.label, row.pages_read, row.blank) == (None, 2, True)
    assert (mixed.error, mixed.blank, [page.blank for page in mixed.pages]) == (None, False, [True, False])


def test_a_model_of_nan_gives_an_error_and_json_stays_json(path):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY, num_classes=3))
    torch.nn.init.constant_(model.head.bias, math.nan)
    classifier = DocumentClassifier(model, device="cpu")
    (row,) = classifier.predict([path], workers=0)
    assert isinstance(row.error, Unsupported)
    assert "NaN" in row.error.message
    json.dumps(row.as_dict(), allow_nan=False)
    with pytest.raises(Unsupported):
        classifier(path)


@pytest.mark.parametrize("damaged", ["norm.bias", "head.bias", "boundaries.proj.bias"])
def test_what_else_reads_a_model_of_nan_says_so_too(path, damaged):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY, num_classes=3, boundaries=8))
    torch.nn.init.constant_(model.get_parameter(damaged), math.nan)
    classifier = DocumentClassifier(model, device="cpu")
    (row,) = split_files(classifier, [path], workers=0)
    assert (row.parts, type(row.error)) == ([], Unsupported)
    assert "NaN" in row.error.message
    (found,) = classifier.embeddings([path], workers=0)
    feature = damaged == "norm.bias"  # the heads come after it
    assert (found.vector is None, type(found.error)) == ((True, Unsupported) if feature else (False, type(None)))


def test_a_model_in_half_precision_works_on_the_cpu_and_stays_as_it_is(classifier, path):
    half = DocViT(classifier.model.config)
    half.load_state_dict(classifier.model.state_dict())
    row = DocumentClassifier(half.half(), device="cpu")(path)
    assert row.scores == pytest.approx(classifier(path).scores, abs=0.02)
    assert next(half.parameters()).dtype == torch.float16


def test_images_in_memory_are_left_as_they_are(classifier, tmp_path):
    Image.fromarray(np.eye(800, 600, dtype=np.uint8) * 255).save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        classifier(image)
        assert image.size == (600, 800)
    assert os.path.exists(tmp_path / "a.jpg")
