"""`docvit fit` as a user meets it: what it prints, what its folder can do, what it refuses."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import CLASSES


@pytest.fixture
def fitting(docvit, trained):
    def fit(data, output, *more):
        model = () if "--add" in more else ("--model", trained)
        return docvit("fit", data, "--output", output, *model, "--device", "cpu", "--workers", 0, *more)

    return fit


@pytest.fixture
def data(corpus, tmp_path):
    """Two examples of bars and text, one of blocks."""
    folder = tmp_path / "data"
    for kind, count in zip(CLASSES, (2, 1, 2), strict=True):
        (folder / kind).mkdir(parents=True)
        for i in range(count):
            shutil.copy(corpus / kind / f"{kind}{i}.pdf", folder / kind)
    return folder


def test_fit_says_how_sure_it_is_and_leaves_a_model(docvit, fitting, data, corpus, tmp_path):
    code, out, _ = fitting(data, tmp_path / "own")
    assert code == 0
    head, *rows = out.splitlines()
    assert head.split()[:4] == ["class", "examples", "recognised", "score"]
    cells = [row.split() for row in rows[:3]]
    assert [row[:2] for row in cells] == [["bars", "2"], ["blocks", "1"], ["text", "2"]]
    assert cells[0][2] == "100%"
    assert 0.3 < float(cells[0][3]) <= 1
    assert cells[1][2:] == ["-", "-"]
    code, out, _ = docvit("classify", corpus, "--model", tmp_path / "own", "--workers", 0, "--format", "jsonl")
    assert code == 0
    assert all(row["label"] in row["path"] for row in map(json.loads, out.splitlines()))
    assert docvit("evaluate", corpus, "--model", tmp_path / "own", "--workers", 0)[1].splitlines()[1][:14] == (
        "accuracy 1.000"
    )


def test_examples_and_classes_are_added(fitting, data, corpus, tmp_path):
    shutil.move(data / "blocks", tmp_path / "later")
    (tmp_path / "more").mkdir()
    shutil.move(tmp_path / "later", tmp_path / "more" / "blocks")
    assert fitting(data, tmp_path / "own")[0] == 0
    code, out, _ = fitting(tmp_path / "more", tmp_path / "own", "--add")
    assert code == 0
    assert [row.split()[:2] for row in out.splitlines()[1:]] == [["bars", "2"], ["blocks", "1"], ["text", "2"]]


def test_what_may_be_mislabelled_is_listed(fitting, data, corpus, tmp_path):
    for i in (2, 3):
        shutil.copy(corpus / "bars" / f"bars{i}.pdf", data / "bars")
    shutil.copy(corpus / "text" / "text3.pdf", data / "bars" / "wrong.pdf")
    code, out, _ = fitting(data, tmp_path / "own")
    assert code == 0
    assert f"{data}/bars/wrong.pdf: bars, looks like text (" in out.partition("look at these again")[2]


def test_what_is_refused_is_one_clear_message(fitting, data, tmp_path, caplog):
    (data / "empty").mkdir()
    code, _, err = fitting(data, tmp_path / "own")
    assert code == 2
    assert "class folder without documents: empty" in err
    (data / "empty").rename(data / "Bars")
    shutil.copy(data / "text" / "text0.pdf", data / "Bars")
    code, _, err = fitting(data, tmp_path / "own")
    assert code == 2
    assert "labels that look alike: Bars, bars" in err
    shutil.rmtree(data / "Bars")
    (data / "text" / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    code, _, err = fitting(data, tmp_path / "own")
    assert code == 2
    assert "broken.pdf" in err
    assert not (tmp_path / "own").exists()
    code, out, _ = fitting(data, tmp_path / "own", "--skip-unreadable")
    assert code == 0
    assert "1 of 6 documents are left out" in caplog.text
    assert out.splitlines()[3].split()[:2] == ["text", "2"]


def test_an_empty_folder_and_one_class(fitting, data, tmp_path):
    (tmp_path / "nothing").mkdir()
    code, _, err = fitting(tmp_path / "nothing", tmp_path / "own")
    assert code == 2
    assert "no documents: give a folder with one sub folder per class" in err
    for kind in ("blocks", "text"):
        shutil.rmtree(data / kind)
    code, _, err = fitting(data, tmp_path / "own")
    assert code == 2
    assert "at least two classes, found: bars" in err
