"""CSVs as spreadsheets write them, labels that look alike, and data that contradicts itself."""

from __future__ import annotations

import errno
import logging
import shutil
import unicodedata

import pytest
from conftest import classed_pdf

from docvit.data.labels import DataError, LabelledDocuments, check_copies, read_labelled
from docvit.data.tables import as_label, read_table
from docvit.documents.errors import Unreadable
from docvit.files import replaced

ROWS = "path,label\na/1.pdf,x\nb/2.pdf,reçu\n"


@pytest.fixture
def data(tmp_path):
    for name in ("a/1.pdf", "b/2.pdf"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(classed_pdf("text", 1))
    return tmp_path


@pytest.mark.parametrize(
    "content",
    [
        ROWS.encode("utf-8-sig"),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace(",", ";").encode(),
        ROWS.replace(",", "\t").encode("utf-16"),
        ("sep=;\r\n" + ROWS.replace(",", ";")).encode("cp1252"),
        (ROWS + ",\n , \n\n").encode(),
        ("\n,\n" + ROWS).encode(),
        ROWS.encode("utf-16-le"),
        ROWS.encode("utf-16-be"),
        ROWS.replace("path,label", " Path ,LABEL").encode(),
        ROWS.replace("/", "\\").encode(),
        ROWS.replace("reçu", '"reçu"').encode(),
    ],
)
def test_every_dialect_gives_the_same_documents(data, content):
    (data / "t.csv").write_bytes(content)
    found = read_labelled(data / "t.csv")
    assert found.classes == ("reçu", "x")
    assert found.paths == (str(data / "a" / "1.pdf"), str(data / "b" / "2.pdf"))
    assert found.labels == (1, 0)


def test_a_spreadsheet_is_no_csv(data):
    for head in (b"PK\x03\x04", b"\xd0\xcf\x11\xe0"):
        (data / "t.csv").write_bytes(head + bytes(range(256)))
        with pytest.raises(DataError, match=r"not a CSV: it is .*office document.*: save its table as CSV"):
            read_labelled(data / "t.csv")


def test_lines_are_those_of_the_file(data):
    (data / "t.csv").write_text('sep=,\npath,label\n\n"a\nb",x\nc,y\n')
    assert [line for line, _ in read_table(data / "t.csv", ("path",))] == [5, 6]
    (data / "t.csv").write_text("\n;\npath;label\na;x\n")
    assert [line for line, _ in read_table(data / "t.csv", ("path",))] == [4]


def test_labels_that_look_alike_are_one_or_complained_of(data):
    composed, apart = (unicodedata.normalize(form, "reçu") for form in ("NFC", "NFD"))
    assert composed != apart
    assert {as_label(text) for text in (composed, apart, " reçu", "reçu\u00a0", "re\u200bçu")} == {composed}
    (data / "t.csv").write_text(f"path,label\na/1.pdf,{apart}\nb/2.pdf,{composed} \n")
    assert read_labelled(data / "t.csv").classes == (composed,)
    for one, other in (("Form", "form"), ("Form", "\uff26orm"), ("data-sheet", "data\u2011sheet")):
        (data / "t.csv").write_text(f"path,label\na/1.pdf,{one}\nb/2.pdf,{other}\n")
        with pytest.raises(DataError, match=f"look alike: {one}, {other}"):
            read_labelled(data / "t.csv")


def test_what_is_passed_over_is_counted_and_listed(data, caplog):
    for name in ("a/notes.docx", "stray.pdf"):
        (data / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert len(read_labelled(data)) == 2
    assert "2 files passed over" in caplog.text
    assert "a/notes.docx, stray.pdf" in caplog.text


def test_what_a_training_wrote_is_no_class(data, caplog):
    for name in ("model/recipe.json", "model/curves.png", "runs/one/model.safetensors", "runs/one/curves.png"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"x")
    assert read_labelled(data).classes == ("a", "b")
    assert "model" in caplog.text


def test_what_a_sort_was_unsure_of_or_could_not_read_is_no_class(data, caplog):
    for name in ("unsure/3.pdf", "unreadable/4.pdf"):
        (data / name).parent.mkdir()
        (data / name).write_bytes(b"x")
    assert read_labelled(data).classes == ("a", "b", "unreadable", "unsure")  # somebody's own
    (data / "docvit-sort.jsonl").touch()
    assert not caplog.text
    assert read_labelled(data).classes == ("a", "b")
    assert "2 files passed over" in caplog.text  # the log of the sort is no news
    assert caplog.text.endswith(": unreadable, unsure\n")


def test_a_folder_that_was_sorted_into_is_no_class(data, caplog):
    (data / "sorted" / "a").mkdir(parents=True)
    shutil.copy(data / "a" / "1.pdf", data / "sorted" / "a")
    (data / "sorted" / "docvit-sort.jsonl").touch()
    assert read_labelled(data).classes == ("a", "b")
    assert read_labelled(data / "sorted").classes == ("a",)
    assert "sorted" in caplog.text


def test_names_of_files_break_no_line(data, caplog):
    (data / "a" / "x\ny\x1b[2J.txt").touch()
    (data / "t.csv").write_text('path,label\na/1.pdf,x\n"no\nthing.pdf",y\n')
    read_labelled(data)
    assert "a/x?y?[2J.txt" in caplog.text
    with pytest.raises(DataError) as caught:
        read_labelled(data / "t.csv")
    assert len(str(caught.value).splitlines()) == 2
    assert str(Unreadable("a\nb.pdf", "it is damaged")) == "a?b.pdf: it is damaged"


def test_folders_for_parts_of_a_data_set_are_no_classes(tmp_path):
    for part in ("train", "Val", "eval"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / "1.pdf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"parts of a data set \(Val, eval, train\), not classes"):
        read_labelled(tmp_path)
    assert read_labelled(tmp_path / "train").classes == ("a",)


def test_one_document_under_two_labels_or_held_out_is_said(caplog):
    data = LabelledDocuments(("a.pdf", "b.pdf", "c.pdf"), (0, 1, 0), ("x", "y"))
    check_copies(data, {"a.pdf": 1, "b.pdf": 2, "c.pdf": 1})
    with pytest.raises(DataError, match=r"two labels: a\.pdf \(x\) and b\.pdf \(y\)"):
        check_copies(data, {"a.pdf": 1, "b.pdf": 1, "c.pdf": 2})
    assert not caplog.text
    held_out = LabelledDocuments(("d.pdf", "e.pdf"), (0, 1), ("x", "y"))
    check_copies(data, {"a.pdf": 1, "b.pdf": 2, "c.pdf": 1, "d.pdf": 2, "e.pdf": 3}, held_out)
    assert "1 documents to evaluate on are among those to train on, too: d.pdf" in caplog.text


def test_a_full_disk_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"a\.bin") as caught, replaced(tmp_path / "a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
