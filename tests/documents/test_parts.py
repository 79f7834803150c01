"""Parts of a PDF or TIFF are written as files of their own: the same pages, whole, and over nothing."""

from __future__ import annotations

import errno

import numpy as np
import pypdfium2
import pytest
from conftest import assemble, classed_pdf
from PIL import Image, ImageSequence

from docvit.documents import parts
from docvit.documents.errors import Unreadable, Unsupported
from docvit.documents.pages import open_document
from docvit.documents.parts import write_part


@pytest.fixture
def pdf(tmp_path):
    path = tmp_path / "in.pdf"
    path.write_bytes(classed_pdf("bars", 5))
    return path


def drawn(path, index):
    with open_document(path) as document:
        return np.array(document[index])


def test_pages_of_a_pdf_are_copied(pdf, tmp_path):
    file = write_part(str(pdf), range(1, 4), tmp_path, "part-2-4-bars")
    assert file == tmp_path / "part-2-4-bars.pdf"
    assert len(pypdfium2.PdfDocument(file)) == 3
    assert all(np.array_equal(drawn(file, i), drawn(pdf, i + 1)) for i in range(3))


def test_filled_in_fields_of_forms_stay_visible(tmp_path):
    """Fields are shown by the form that a file is; a copied page is none. Its other annotations, links, are copied."""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Annots[%d 0 R]>>"
    field = b"<</Type/Annot/Subtype/Widget/FT/Tx/T(name)/V(Ada)/F 4/Rect[50 50 100 100]/AP<</N 7 0 R>>>>"
    objects = [
        b"<</Type/Catalog/Pages 2 0 R/AcroForm<</Fields[5 0 R]>>>>",
        b"<</Type/Pages/Kids[3 0 R 4 0 R]/Count 2>>",
        page % 5,
        page % 6,
        field,
        b"<</Type/Annot/Subtype/Link/Rect[0 0 50 50]/A<</S/URI/URI(https://example.org)>>>>",
        b"<</Type/XObject/Subtype/Form/BBox[0 0 50 50]/Length 28>>stream\n0 0 1 rg 0 0 50 50 re f     \nendstream",
    ]
    (tmp_path / "form.pdf").write_bytes(assemble(objects))
    file = write_part(str(tmp_path / "form.pdf"), range(2), tmp_path, "part")
    assert drawn(tmp_path / "form.pdf", 0).min() == 0
    np.testing.assert_array_equal(drawn(file, 0), drawn(tmp_path / "form.pdf", 0))
    assert pypdfium2.raw.FPDFPage_GetAnnotCount(pypdfium2.PdfDocument(file)[1]) == 1


def test_nothing_is_overwritten_and_nothing_else_is_left(pdf, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "part.pdf").write_bytes(b"mine")
    names = [write_part(str(pdf), [0], folder, "part").name for _ in range(2)]
    assert names == ["part-2.pdf", "part-3.pdf"]
    assert (folder / "part.pdf").read_bytes() == b"mine"
    assert sorted(f.name for f in folder.iterdir()) == ["part-2.pdf", "part-3.pdf", "part.pdf"]


def test_a_long_name_is_cut(pdf, tmp_path):
    files = [write_part(str(pdf), [0], tmp_path, 90 * "長") for _ in range(2)]
    assert [file.name for file in files] == [83 * "長" + ".pdf", 83 * "長" + "-2.pdf"]
    assert all(len(pypdfium2.PdfDocument(file)) == 1 for file in files)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_ctrl_c_leaves_no_half_file(pdf, tmp_path, monkeypatch, error):
    folder = tmp_path / "out"
    folder.mkdir()

    def save(self, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(pypdfium2.PdfDocument, "save", save)
    with pytest.raises(type(error)) as raised:
        write_part(str(pdf), [0], folder, "part")
    assert list(folder.iterdir()) == []
    if isinstance(error, OSError):
        assert raised.value.filename == str(folder / "part.pdf")


def test_a_page_that_cannot_be_copied_is_left_out(pdf, tmp_path, monkeypatch):
    original = pypdfium2.PdfDocument.import_pages

    def import_pages(self, source, pages):
        if 2 in pages:
            raise pypdfium2.PdfiumError("damaged")
        original(self, source, pages)

    monkeypatch.setattr(pypdfium2.PdfDocument, "import_pages", import_pages)
    assert len(pypdfium2.PdfDocument(write_part(str(pdf), [1, 2, 3], tmp_path, "part"))) == 2
    with pytest.raises(Unreadable, match="no page from 3 to 3"):
        write_part(str(pdf), [2], tmp_path, "other")


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_pages_of_a_tiff_are_copied_without_loss(tmp_path, mode):
    random = np.random.default_rng(0)
    pages = [Image.fromarray(random.integers(0, 255, (40, 30, 3), np.uint8)).convert(mode) for _ in range(4)]
    pages[0].save(tmp_path / "in.tiff", save_all=True, append_images=pages[1:], dpi=(300, 300))
    file = write_part(str(tmp_path / "in.tiff"), [1, 3], tmp_path, "part")
    assert file.suffix == ".tif"
    with Image.open(file) as image:
        copied = [(np.array(frame), frame.info["dpi"]) for frame in ImageSequence.Iterator(image)]
    assert len(copied) == 2
    for (pixels, dpi), page in zip(copied, (pages[1], pages[3]), strict=True):
        assert np.array_equal(pixels, np.array(page))
        assert dpi == (300, 300)


def test_other_files_cannot_be_written_in_parts(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(Unsupported, match="PDFs and TIFFs alone"):
        write_part(str(tmp_path / "a.png"), [0], tmp_path, "part")
    assert parts.PDFIUM_LOCK.acquire(blocking=False)
    parts.PDFIUM_LOCK.release()
