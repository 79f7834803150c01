"""`docvit split` as a user meets it."""

from __future__ import annotations

import json

import pypdfium2
import pytest
import torch
from conftest import ENCRYPTED, classed_pdf
from PIL import Image

from docvit.documents import parts
from docvit.model.docvit import DocViT


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A model with a head, untrained."""
    folder = tmp_path_factory.mktemp("split")
    DocViT.from_pretrained(trained).adapt(boundaries=8).save_pretrained(folder)
    return folder


@pytest.fixture
def packet(tmp_path, monkeypatch):
    """Two documents, which begin on pages 1 and 3."""
    monkeypatch.setattr(DocViT, "forward_boundaries", lambda *a: torch.where(a[2].page_index == 2, 12.0, -6.0))
    whole = pypdfium2.PdfDocument.new()
    for kind, pages in (("bars", 2), ("text", 1)):
        whole.import_pages(pypdfium2.PdfDocument(classed_pdf(kind, pages)))
    whole.save(tmp_path / "packet.pdf")
    return tmp_path / "packet.pdf"


def test_rows_and_files(docvit, packet, folder, tmp_path):
    gone, output = tmp_path / "gone.pdf", tmp_path / "out"
    line = ("split", packet, gone, "--model", folder, "--format", "jsonl", "--output", output)
    code, out, _ = docvit(*line)
    assert code == 1
    good, bad = map(json.loads, out.splitlines())
    assert {"path", "num_pages", "parts", "error"} <= set(good)
    assert [(p["first"], p["last"], p["label"]) for p in good["parts"]] == [(1, 2, "bars"), (3, 3, "text")]
    names = ["packet-1-2-bars.pdf", "packet-3-3-text.pdf"]
    assert [p["file"] for p in good["parts"]] == [str(output / name) for name in names]
    assert sorted(file.name for file in output.iterdir()) == names
    assert [len(pypdfium2.PdfDocument(output / name)) for name in names] == [2, 1]
    assert (bad["error"]["type"], bad["parts"]) == ("NotFound", [])
    code, out, _ = docvit("split", packet, "--model", folder)
    assert code == 0
    head, first, second = out.splitlines()
    assert head.split() == ["path", "pages", "label", "score", "cut"]
    assert first.split()[1:3] == ["1-2", "bars"]
    assert second.split()[1:3] == ["3", "text"]
    assert len(second.split()) == len(first.split()) + 1  # how sure the cut is


def test_a_model_that_cannot_split_is_said_before_the_table_begins(docvit, trained, packet):
    code, out, err = docvit("split", packet, "--model", trained)
    assert (code, out) == (2, "")
    assert err == "error: the model has not learnt where documents begin: train one with docvit train --packets 1\n"


def test_labels_become_names_of_files(docvit, packet, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("docvit.inference.classify.DocumentClassifier.classes", ("a/b c", "..", "é"), raising=False)
    model = DocViT.from_pretrained(folder)
    model = model.adapt(classes=("a/b c", "..", "é"), num_classes=3)
    model.save_pretrained(tmp_path / "named")
    docvit("split", packet, "--model", tmp_path / "named", "--output", tmp_path / "out")
    written = [file.name for file in (tmp_path / "out").iterdir()]
    assert len(written) == 2
    assert all(name.startswith("packet-") and "/" not in name and " " not in name for name in written)


def test_a_folder_of_page_images_is_a_row_and_the_rest_is_written(docvit, packet, folder, tmp_path):
    (tmp_path / "scan").mkdir()
    Image.new("L", (90, 120), 200).save(tmp_path / "scan" / "1.png")
    Image.linear_gradient("L").save(tmp_path / "scan" / "2.png")
    line = ("split", tmp_path / "scan", packet, "--model", folder, "--output", tmp_path / "out")
    code, out, _ = docvit(*line)
    assert code == 1
    assert "Unsupported: this is a folder of page images" in out
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_password_opens_files_to_read_and_to_copy(docvit, folder, tmp_path, packet):
    (tmp_path / "secret.pdf").write_bytes(ENCRYPTED)
    line = ("split", tmp_path / "secret.pdf", "--model", folder, "--output", tmp_path / "out")
    assert "Encrypted" in docvit(*line)[1]
    code, out, _ = docvit(*line, "--password", "secret")
    assert (code, len(out.splitlines())) == (0, 2)
    (file,) = (tmp_path / "out").iterdir()
    assert len(pypdfium2.PdfDocument(file)) == 1


def test_a_full_disk_is_said_with_what_is_not_written(docvit, packet, folder, tmp_path, monkeypatch):
    original, calls = parts.write_part, []

    def write_part(path, pages, folder, name, **options):
        calls.append(name)
        if len(calls) > 1:
            raise OSError(28, "No space left on device", str(folder / name))
        return original(path, pages, folder, name, **options)

    monkeypatch.setattr(parts, "write_part", write_part)
    code, _, err = docvit("split", packet, "--model", folder, "--output", tmp_path / "out")
    assert code == 2
    assert err.splitlines()[-1].endswith(f"No space left on device: 1 of 1 files are not written, from {packet} on")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["packet-1-2-bars.pdf"]


def test_a_folder_that_cannot_be_made_is_said_before_the_first_row(docvit, packet, folder):
    code, out, err = docvit("split", packet, "--model", folder, "--output", packet)
    assert (code, out) == (2, "")
    assert "File exists" in err


def test_a_model_without_the_head(docvit, packet, trained):
    code, _, err = docvit("split", packet, "--model", trained)
    assert code == 2
    assert "docvit train --packets" in err
