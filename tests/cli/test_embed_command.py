"""`docvit embed` as a user meets it: the three kinds of files, failures, and what is refused at once."""

from __future__ import annotations

import csv
import os
import sys

import numpy as np
import pytest
from conftest import classed_pdf


@pytest.fixture
def written(docvit, trained, corpus, tmp_path):
    """`written("x.csv")` embeds a good and a broken file; gives (exit code, standard error, file, paths)."""
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.4 broken")
    paths = [str(corpus / "bars" / "bars0.pdf"), str(broken)]

    def write(name):
        file = tmp_path / name
        code, _, err = docvit("embed", *paths, "--output", file, "--model", trained, "--workers", 0)
        return code, err, file, paths

    return write


@pytest.fixture
def vector(trained, corpus):
    from docvit import DocumentClassifier

    return DocumentClassifier.from_pretrained(trained).embed(corpus / "bars" / "bars0.pdf", workers=0)[0]


def test_parquet(written, vector):
    parquet = pytest.importorskip("pyarrow.parquet")
    code, err, file, paths = written("x.parquet")
    assert code == 1
    assert "Unreadable: " in err
    table = parquet.read_table(file)
    assert table.column_names == ["path", "error", "embedding"]
    good, bad = table.to_pylist()
    assert [good["path"], bad["path"]] == paths
    assert good["error"] is None
    np.testing.assert_allclose(good["embedding"], vector, rtol=1e-5)
    assert bad["error"].startswith("Unreadable: ")
    assert bad["embedding"] is None


def test_csv(written, vector):
    code, _, file, paths = written("x.csv")
    assert code == 1
    with file.open(newline="") as opened:
        header, good, bad = csv.reader(opened)
    assert header == ["path", "error", *map(str, range(len(vector)))]
    assert good[:2] == [paths[0], ""]
    np.testing.assert_allclose(np.array(good[2:], float), vector, rtol=1e-5)
    assert bad[0] == paths[1]
    assert bad[1].startswith("Unreadable: ")
    assert len(bad) == 2


def test_npy(written, vector):
    code, _, file, _ = written("x.npy")
    assert code == 1
    good, bad = np.load(file)
    np.testing.assert_allclose(good, vector, rtol=1e-5)
    assert np.isnan(bad).all()


def test_names_that_are_no_utf_8_are_written(docvit, trained, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    name = os.fsencode(tmp_path / "caf") + b"\xe9.pdf"
    with open(name, "wb") as opened:
        opened.write(classed_pdf("bars"))
    for file in (tmp_path / "x.csv", tmp_path / "x.parquet"):
        code, _, err = docvit("embed", os.fsdecode(name), "--output", file, "--model", trained, "--workers", 0)
        assert (code, err) == (0, "")
    assert name in (tmp_path / "x.csv").read_bytes()
    (path,) = parquet.read_table(tmp_path / "x.parquet")["path"].to_pylist()
    assert path == f"{tmp_path}/caf\\udce9.pdf"


def test_all_read_ends_with_0(docvit, trained, corpus, tmp_path):
    file = tmp_path / "new" / "x.npy"
    code, out, _ = docvit("embed", corpus, "--output", file, "--model", trained, "--workers", 0)
    assert code == 0
    assert out == f"{file}: 12 documents, 0 without a vector\n"


def test_an_output_that_cannot_be_written_is_refused_at_once(docvit, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("docvit.inference.classify.DocumentClassifier.from_pretrained", None)
    (tmp_path / "dir.csv").mkdir()
    (tmp_path / "old.csv").write_text("mine")
    for name, said in (
        ("x.json", ".parquet, .npy, .csv"),
        ("dir.csv", "is a folder"),
        ("old.csv", "exists"),
        ("old.csv/x.csv", "old.csv"),
    ):
        code, out, err = docvit("embed", corpus, "--output", tmp_path / name)
        assert (code, out) == (2, "")
        assert said in err
        assert len(err.splitlines()) == 1
    assert (tmp_path / "old.csv").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, _, err = docvit("embed", corpus, "--output", tmp_path / "x.parquet")
    assert code == 2
    assert 'pip install "docvit[parquet]"' in err
