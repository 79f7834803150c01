"""`docvit review` as a user meets it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest import CLASSES, TINY, classed_pdf

from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT


@pytest.fixture
def model(tmp_path):
    torch.manual_seed(0)
    DocViT(DocViTConfig(**TINY, num_classes=3, classes=CLASSES)).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pile(tmp_path):
    (tmp_path / "pile").mkdir()
    for kind in CLASSES:
        (tmp_path / "pile" / f"{kind}.pdf").write_bytes(classed_pdf(kind))
    return tmp_path / "pile"


def test_a_page_of_a_folder(docvit, model, pile, tmp_path):
    output = tmp_path / "new" / "page.html"
    code, out, err = docvit("review", pile, "--model", model, "--output", output, "--workers", 0, "--device", "cpu")
    assert (code, err) == (0, "")
    assert out == f"{output}: 3 documents, {output.stat().st_size / 1e6:.1f} MB; open it in a browser\n"
    (text,) = re.findall(r'type="application/json">(.*)</script>', output.read_text(encoding="utf-8"))
    entries = json.loads(text)["documents"]
    assert [entry["file"] for entry in entries] == [str(pile / f"{kind}.pdf") for kind in sorted(CLASSES)]


def test_what_cannot_be_read_and_what_was_passed_over_is_said(docvit, model, pile, tmp_path):
    (pile / "cut.pdf").write_bytes(classed_pdf("text")[:300])
    (pile / "notes.docx").touch()
    output = tmp_path / "page.html"
    code, out, err = docvit("review", pile, "--model", model, "--output", output, "--workers", 0, "--device", "cpu")
    assert code == 1
    assert "4 documents" in out
    assert f"Unreadable: {pile / 'cut.pdf'}" in err
    assert "1 file passed over" in err
    assert "cut.pdf" in output.read_text(encoding="utf-8")


def test_an_output_that_cannot_be_written_is_an_error_before_anything_is_read(docvit, pile, monkeypatch, tmp_path):
    monkeypatch.setattr("docvit.inference.classify.DocumentClassifier.from_pretrained", None)
    code, out, err = docvit("review", pile, "--output", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"error: {tmp_path} is a folder: give --output a name in it, such as {tmp_path / 'review.html'}\n"
    (tmp_path / "file").touch()
    code, _, err = docvit("review", pile, "--output", tmp_path / "file" / "page.html")
    assert code == 2
    assert str(tmp_path / "file") in err
