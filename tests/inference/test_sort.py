"""Sorting into folders: where documents go, what they are called there, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import process
from sorting import LABELS, SORTED, forks, make_inbox, predict, run, tree, undo

from docvit.documents.errors import Empty, NotFound
from docvit.documents.finding import SORT_LOG
from docvit.errors import UserError
from docvit.inference import sort, sort_copy
from docvit.inference.prediction import Page, Prediction
from docvit.inference.sort_log import Entry, SortLog, read_log


@pytest.fixture
def inbox(tmp_path):
    return make_inbox(tmp_path)


# --- where documents go


def test_documents_lie_in_the_folder_of_their_label_and_their_originals_stay_or_go(inbox, tmp_path):
    before = tree(inbox)
    expected = {target: before[source] for target, source in SORTED.items()}
    rows = run([inbox], tmp_path / "copied")
    assert tree(tmp_path / "copied") == expected
    assert tree(inbox) == before
    assert {row.path: row.problem for row in rows if row.problem} == {
        str(inbox / "bad-c.pdf"): "Unreadable: it is damaged"
    }
    run([inbox], tmp_path / "moved", move=True)
    assert tree(tmp_path / "moved") == expected
    assert tree(inbox) == {"letter.docx": before["letter.docx"]}


def test_a_preview_names_what_a_sort_then_does_and_writes_nothing(inbox, tmp_path):
    (inbox / "sub" / "a-form.pdf").write_bytes(b"another of this name")
    documents, _ = sort.find_to_sort([str(inbox)], str(tmp_path / "out"), ())
    planned = list(sort.preview(documents, str(tmp_path / "out"), predict, sort.folder_names(LABELS)))
    assert not (tmp_path / "out").exists()
    assert planned == run([inbox], tmp_path / "out")


def test_copies_keep_their_times_and_permissions(inbox, tmp_path):
    os.utime(inbox / "a-form.pdf", (1e9, 1e9))
    (inbox / "a-form.pdf").chmod(0o440)
    run([inbox], tmp_path / "out")
    found = (tmp_path / "out" / "form" / "a-form.pdf").stat()
    assert (found.st_mtime, found.st_mode & 0o777) == (1e9, 0o440)


@pytest.mark.parametrize(
    ("prediction", "folder"),
    [
        (Prediction("p", "form", 0.5), "form"),
        (Prediction("p", "form", 0.99, unsure=True), "unsure"),
        (Prediction("p", error=Empty("p", "every page is blank"), pages=[Page(1, blank=True)]), "unsure"),
        (Prediction("p", error=Empty("p", "it has no pages")), "unreadable"),
    ],
)
def test_the_destination(prediction, folder):
    assert sort.destination(prediction, {"form": "form"}) == folder


# --- names


def test_labels_become_names_that_are_valid_everywhere_and_differ_in_more_than_case():
    labels = ["a/b", "..", "", "Form", "form", "unsure", "Unreadable", "con", "x. ", "a\nb", "é", "e\u0301", "é" * 200]
    folders = sort.folder_names(labels)
    assert (folders["Form"], folders["form"]) == ("Form", "form-2")
    assert (folders["a/b"], folders[".."], folders["con"], folders["x. "]) == ("a_b", "_", "con_", "x")
    assert (folders["unsure"], folders["Unreadable"], folders["é"]) == ("unsure-2", "Unreadable-2", "é")
    assert len({name.casefold() for name in folders.values()}) == len(labels)
    for name in folders.values():
        assert 0 < len(name.encode()) <= 255
        assert not set(name) & set('/\\:*?"<>|\n')
        assert name.strip(". ") == name


def test_nothing_is_overwritten_and_a_name_of_255_bytes_stays_valid(tmp_path):
    longest = "é" * 123 + "-form.pdf"  # 255 bytes
    assert len(longest.encode()) == 255
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
        for name in (longest, "a-form.pdf", "." + "s" * 200):
            (tmp_path / folder / name).write_text(folder + name)
    (tmp_path / "z" / "A-FORM.pdf").write_text("large letters")
    (tmp_path / "out" / "form").mkdir(parents=True)
    (tmp_path / "out" / "form" / "a-form-2.pdf").write_text("was here before")
    run([tmp_path / "x", tmp_path / "y", tmp_path / "z"], tmp_path / "out", labels=(*LABELS, "FORM"))
    found = tree(tmp_path / "out")
    assert found["form/a-form-2.pdf"] == b"was here before"
    assert {found[f"form/a-form{n}.pdf"] for n in ("", "-3", "-4")} == {b"xa-form.pdf", b"ya-form.pdf", b"za-form.pdf"}
    names = [name for name in found if "é" in name]
    assert sorted(found[name] for name in names) == sorted(f"{f}{longest}".encode() for f in "xyz")
    assert all(len(Path(name).name.encode()) <= 255 and name.endswith(".pdf") for name in names)
    assert len({name.casefold() for name in found}) == len(found) == 8


def test_names_that_differ_in_case_alone_get_a_number(tmp_path):
    for name in ("a-form.pdf", "A-form.pdf", "sub/é-form.pdf", "sub/e\u0301-form.pdf"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    run([tmp_path / "in"], tmp_path / "out")
    assert len({name.casefold() for name in tree(tmp_path / "out")}) == 4
    assert sum("-2" in name for name in tree(tmp_path / "out")) == 2


# --- what is sorted


def test_what_lies_in_the_folder_of_the_sort_is_not_sorted_again(inbox):
    out = inbox / "sorted"
    run([inbox], out)
    first = tree(out)
    assert run([inbox], out) == []
    assert tree(out) == first
    for path in (out, out / "form"):
        with pytest.raises(UserError, match="lies in --into"):
            run([path], out)
    with pytest.raises(UserError, match="which is one document"):
        sort.find_to_sort([str(inbox / "sub" / "scan-form")], str(inbox / "sub" / "scan-form" / "out"), ())


def test_a_document_is_sorted_once_however_often_and_by_whatever_way_it_is_named(inbox, tmp_path):
    (tmp_path / "link").symlink_to(inbox)
    rows = run(
        [inbox / "a-form.pdf", inbox, tmp_path / "link", inbox / "sub" / "scan-form" / "1.png"], tmp_path / "out"
    )
    assert len(rows) == 5
    assert set(tree(tmp_path / "out")) == set(SORTED)


def test_a_changed_document_and_another_one_of_the_same_name_are_sorted_again(inbox, tmp_path):
    run([inbox], tmp_path / "copied")
    (inbox / "a-form.pdf").write_bytes(b"changed")
    assert [row.target for row in run([inbox], tmp_path / "copied")] == ["form/a-form-2.pdf"]
    run([inbox], tmp_path / "moved", move=True)
    assert run([inbox], tmp_path / "moved", move=True) == []
    shutil.copy2(tmp_path / "moved" / "form" / "a-form.pdf", inbox)
    assert [row.target for row in run([inbox], tmp_path / "moved", move=True)] == ["form/a-form-2.pdf"]
    assert run([inbox / "a-form.pdf"], tmp_path / "moved", move=True) == []  # gone, and known to be


def test_page_images_are_sorted_before_a_folder_could_be_taken_for_one_document_of_them(tmp_path):
    for name in ("a-form.pdf", "b-form.png", "c-form.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    documents, _ = sort.find_to_sort([str(tmp_path / "in")], str(tmp_path / "out"), ())
    assert [Path(document).name for document in documents] == ["b-form.png", "c-form.png", "a-form.pdf"]


def test_a_link_is_copied_and_never_moved(inbox, tmp_path):
    (tmp_path / "elsewhere.pdf").write_text("the original")
    (inbox / "l-form.pdf").symlink_to("../elsewhere.pdf")
    run([inbox / "l-form.pdf"], tmp_path / "out", move=True)
    assert tree(tmp_path / "out") == {"form/l-form.pdf": b"the original"}
    assert not (tmp_path / "out" / "form" / "l-form.pdf").is_symlink()
    assert os.readlink(inbox / "l-form.pdf") == "../elsewhere.pdf"
    assert run([inbox / "l-form.pdf"], tmp_path / "out", move=True) == []
    undo(tmp_path / "out")
    assert tree(tmp_path / "out") == {}


# --- what goes wrong costs a row


def test_files_that_vanish_and_folders_that_cannot_be_made_cost_a_row_and_the_rest_goes_on(inbox, tmp_path):
    def vanishing(paths):
        for prediction in predict(paths):
            if prediction.path.endswith("b-report.pdf"):
                os.remove(prediction.path)
                prediction = Prediction(prediction.path, error=NotFound(prediction.path, "it is gone"))
            yield prediction

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "unsure").write_text("a file in the way")
    rows = run([inbox, tmp_path / "nowhere.pdf"], tmp_path / "out", move=True, predict=vanishing)
    problems = {Path(row.path).name: row.problem for row in rows if row.target is None}
    assert problems.keys() == {"b-report.pdf", "nowhere.pdf", "dim-d-form.pdf"}
    assert all(problem and "\n" not in problem for problem in problems.values())
    assert set(tree(tmp_path / "out")) == set(SORTED) - {"unsure/dim-d-form.pdf", "report/b-report.pdf"} | {"unsure"}
    assert (inbox / "dim-d-form.pdf").exists()
    (tmp_path / "out" / "unsure").unlink()
    run([inbox], tmp_path / "out", move=True)
    assert set(tree(tmp_path / "out")) == set(SORTED) - {"report/b-report.pdf"}


def test_a_full_disk_costs_a_row_names_the_path_and_leaves_the_original_and_no_rest(inbox, tmp_path, monkeypatch):
    full, copy = [True], shutil.copyfileobj

    def copyfileobj(read, written, length):
        if full and read.name.endswith("a-form.pdf"):
            written.write(b"half")
            raise OSError(28, "No space left on device")
        copy(read, written, length)

    monkeypatch.setattr(shutil, "copyfileobj", copyfileobj)
    before = tree(inbox)
    rows = run([inbox], tmp_path / "out", move=True)
    (problem,) = [row.problem for row in rows if row.target is None]
    assert problem == f"No space left on device ({tmp_path}/out/form/a-form.pdf)"
    assert set(tree(tmp_path / "out")) == set(SORTED) - {"form/a-form.pdf"}
    assert (inbox / "a-form.pdf").read_bytes() == before["a-form.pdf"]
    full.clear()
    assert run([inbox], tmp_path / "out", move=True) == []
    assert tree(tmp_path / "out") == {target: before[source] for target, source in SORTED.items()}


def test_a_log_line_on_a_full_disk_leaves_the_log_as_it_was(tmp_path, monkeypatch):
    entry = Entry(1, "/a", "form/a", False, "form", 0.9, (1, 2, 3))
    with SortLog(str(tmp_path)) as log:
        log.write(entry)
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space .*docvit-sort\.jsonl"):
            log.write(sort.replace(entry, state="copied"))
        assert log.entries == {1: entry}
    assert read_log(str(tmp_path)) == {1: entry}


def test_a_copy_that_differs_is_no_copy(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("all of it")
    monkeypatch.setattr(shutil, "copyfileobj", lambda read, written, _: written.write(b"all of"))
    with pytest.raises(OSError, match="differs"):
        sort_copy.copy_checked(str(tmp_path / "a"), str(tmp_path / "b"))
    assert tree(tmp_path) == {"a": b"all of it"}


def test_an_original_that_changed_after_it_was_copied_stays(inbox, tmp_path, monkeypatch):
    copy = sort.copy_checked

    def then_change(source, target):
        copy(source, target)
        Path(source).write_text("changed")

    monkeypatch.setattr(sort, "copy_checked", then_change)
    run([inbox / "a-form.pdf"], tmp_path / "out", move=True)
    assert (inbox / "a-form.pdf").read_text() == "changed"
    assert set(tree(tmp_path / "out")) == {"form/a-form.pdf"}


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_is_taken_meanwhile_is_not_overwritten(tmp_path, monkeypatch, links):
    def refuse(*_):
        raise OSError(1, "this file system has no links")

    monkeypatch.setattr(os, "link", os.link if links else refuse)
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    with pytest.raises(FileExistsError):
        sort_copy.copy_checked(str(tmp_path / "a"), str(tmp_path / "b"))
    sort_copy.copy_checked(str(tmp_path / "a"), str(tmp_path / "c"))
    assert tree(tmp_path) == {"a": b"new", "b": b"old", "c": b"new"}


def test_a_link_to_the_original_is_no_copy_of_it_and_links_in_a_folder_stay_links(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.png").write_text("a page")
    (tmp_path / "folder" / "2.png").symlink_to("1.png")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "1.png")
    assert not sort_copy.contains(str(tmp_path / "link"), str(tmp_path / "folder" / "1.png"))
    sort_copy.copy_checked(str(tmp_path / "folder"), str(tmp_path / "copy"))
    assert os.readlink(tmp_path / "copy" / "2.png") == "1.png"
    assert sort_copy.contains(str(tmp_path / "copy"), str(tmp_path / "folder"))
    (tmp_path / "copy" / "2.png").unlink()
    (tmp_path / "copy" / "2.png").write_text("a page")
    assert not sort_copy.contains(str(tmp_path / "copy"), str(tmp_path / "folder"))


# --- undo


@pytest.mark.parametrize("move", [False, True])
def test_undo_brings_everything_back(inbox, tmp_path, move):
    before = tree(tmp_path / "inbox")
    out = inbox / "out"
    run([inbox], out, move=move)
    shutil.rmtree(inbox / "sub", ignore_errors=True)  # undo makes it again
    assert all(row.problem is None for row in undo(out))
    assert tree(inbox) == before
    assert [path.name for path in out.iterdir()] == [SORT_LOG]
    assert undo(out) == []
    run([inbox], out, move=move)
    assert {f"out/{target}" for target in SORTED} <= set(tree(inbox))


def test_undo_of_some(inbox, tmp_path):
    run([inbox], tmp_path / "out", move=True)
    undo(tmp_path / "out", [inbox / "sub"])
    assert set(tree(inbox)) == {"letter.docx", *(name for name in SORTED.values() if name.startswith("sub"))}


def test_undo_overwrites_nothing_and_leaves_what_was_changed_by_hand(inbox, tmp_path):
    run([inbox], tmp_path / "moved", move=True)
    (inbox / "a-form.pdf").write_text("a new one")
    (tmp_path / "moved" / "report" / "b-report.pdf").unlink()
    problems = [row for row in undo(tmp_path / "moved") if row.problem]
    assert [Path(row.path).name for row in problems] == ["b-report.pdf"]
    assert tree(inbox)["a-form.pdf"] == b"a new one"
    assert tree(inbox)["a-form-2.pdf"] == b"a-form.pdf" * 100
    run([inbox / "a-form-2.pdf"], tmp_path / "copied", labels=("2",))
    (inbox / "a-form-2.pdf").write_text("changed")
    (row,) = undo(tmp_path / "copied")
    assert "differs" in row.problem
    assert tree(tmp_path / "copied") == {"2/a-form-2.pdf": b"a-form.pdf" * 100}


def test_the_log_says_what_was_done(inbox, tmp_path):
    name = os.fsdecode(b"\xff-form.pdf")
    (inbox / name).write_text("a name that is no text")
    run([inbox / name], tmp_path / "out", move=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / SORT_LOG).read_text().splitlines()]
    assert [line["state"] for line in lines] == ["begun", "copied", "sorted"]
    assert {(line["source"], line["target"], line["label"], line["score"]) for line in lines} == {
        (str(inbox / name), f"form/{name}", "form", 0.9)
    }


def test_a_line_cut_off_is_dropped_and_a_damaged_one_named(tmp_path):
    with SortLog(str(tmp_path)) as log:
        log.write(Entry(1, "/a", "form/a", False, "form", 0.9, (1, 2, 3)))
    whole = (tmp_path / SORT_LOG).read_bytes()
    (tmp_path / SORT_LOG).write_bytes(whole + whole[:20])
    with SortLog(str(tmp_path)) as log:
        log.write(Entry(2, "/b", "form/b", False, "form", 0.9, (1, 2, 3)))
    assert read_log(str(tmp_path)).keys() == {1, 2}
    (tmp_path / SORT_LOG).write_bytes(whole[:20] + b"\n" + whole)
    with pytest.raises(UserError, match="line 1 is damaged"):
        SortLog(str(tmp_path))


@forks
def test_one_process_at_a_time(tmp_path):
    with SortLog(str(tmp_path)) as log:
        log.write(Entry(1, "/a", "form/a", False, "form", 0.9, (1, 2, 3)))
        script = "from docvit.inference.sort_log import SortLog; import sys; SortLog(sys.argv[1])"
        _, err = process(script, tmp_path).communicate(timeout=60)
        assert "another docvit sort is writing" in err
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
    try:
        with SortLog(str(tmp_path)):  # a worker that outlives its parent does not hold it
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
