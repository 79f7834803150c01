"""Files become pages: sizes, order, laziness, and a typed error for everything that can be wrong."""

from __future__ import annotations

import base64
import os
import pickle
import sys

import numpy as np
import pypdfium2
import pytest
from conftest import ENCRYPTED, pdf_bytes
from PIL import Image

from docvit.documents import pages
from docvit.documents.errors import DocumentError, Empty, Encrypted, NotFound, TooLarge, Unreadable, Unsupported
from docvit.documents.finding import find_documents
from docvit.documents.images import fit_image
from docvit.documents.pages import open_document, read_document, spread
from docvit.documents.rendering import Rendering


def image_file(path, size=(30, 40), color="black", mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


# --- sizes


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((612, 792), (176, 224)), ((792, 612), (224, 176)), ((500, 500), (224, 224)), ((10, 400), (16, 640))],
)
def test_the_longer_side_is_the_size_and_both_are_whole_patches(make_pdf, sides, expected):
    assert Rendering().fit(*sides) == expected
    with open_document(make_pdf(pages=[sides])) as document:
        assert document[0].size == expected


def test_fitted_sides_are_within_half_a_patch_of_the_true_proportion():
    for width in range(20, 1000, 7):
        w, h = Rendering(size=512, multiple=14).fit(width, 700)
        assert w % 14 == h % 14 == 0
        assert abs(w - 512 * width / max(width, 700)) <= 7 or w == 14


def test_rotation_turns_and_crop_box_cuts(make_pdf):
    upright = read_document(make_pdf("a.pdf")).pages[0]
    turned = read_document(make_pdf("b.pdf", extra="/Rotate 90")).pages[0]
    assert turned.shape == (176, 224, 3)
    assert np.corrcoef(np.rot90(upright, -1).ravel(), turned.ravel())[0, 1] > 0.95
    assert read_document(make_pdf("c.pdf", extra="/CropBox[0 0 300 100]")).pages[0].shape == (80, 224, 3)


def test_supersampling_is_nearer_to_the_reduced_large_page(make_pdf):
    lines = b"0.2 w " + b" ".join(b"50 %d m 560 %d l S" % (y, y) for y in range(60, 760, 23))
    path = make_pdf(contents=[lines])
    with pypdfium2.PdfDocument(path) as pdf:  # an independent rendering, 16 times larger
        large = pdf[0].render(scale=16 * 224 / 792).to_pil().convert("L").resize((176, 224), Image.Resampling.BOX)
    reference = np.asarray(large, float)
    errors = [
        np.abs(read_document(path, Rendering(supersample=s, mode="L")).pages[0] - reference).mean() for s in (1, 2, 4)
    ]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_gray_is_the_luminance_of_colour(make_pdf):
    path = make_pdf(contents=[b"1 0 0 rg 100 100 300 500 re f"])
    colour, gray = (read_document(path, Rendering(mode=mode)).pages[0] for mode in ("RGB", "L"))
    assert gray.shape == colour.shape[:2]
    np.testing.assert_allclose(gray, colour @ np.array([0.299, 0.587, 0.114]), atol=1)


def test_channels_are_red_green_blue(make_pdf):
    page = read_document(make_pdf(contents=[b"1 0.5 0 rg 0 0 612 792 re f"])).pages[0]
    np.testing.assert_allclose(page.reshape(-1, 3).mean(0), [255, 127.5, 0], atol=1)


def test_filled_form_fields_and_annotations_are_drawn(tmp_path, make_pdf):
    note = "/Annots[<</Type/Annot/Subtype/Square/Rect[100 100 500 700]/C[0 0 0]/IC[0 0 0]/F 4>>]"
    blank = read_document(make_pdf("a.pdf", contents=[b""])).pages[0]
    noted = read_document(make_pdf("b.pdf", contents=[b""], extra=note)).pages[0]
    assert blank.min() == 255
    assert noted.mean() < 160


@pytest.mark.parametrize("wrong", [{"renderer": "mupdf"}, {"mode": "CMYK"}, {"size": 0}, {"supersample": 0}])
def test_a_rendering_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rendering(**wrong)


# --- documents


def test_a_document_is_a_lazy_sequence(make_pdf):
    with open_document(str(make_pdf(pages=[(612, 792)] * 5))) as document:
        assert len(document) == document.num_pages == 5
        arrays = [np.asarray(page) for page in document]
        np.testing.assert_array_equal(arrays[-1], np.asarray(document[-1]))
        np.testing.assert_array_equal(arrays[1], np.asarray(document[1:3][0]))
        assert not np.array_equal(arrays[0], arrays[1])
        assert document.render(0, Rendering(size=64)).size == (48, 64)
        with pytest.raises(IndexError):
            document[5]


def test_only_the_pages_asked_for_are_drawn(make_pdf, monkeypatch):
    drawn = []
    draw = pages.PdfiumPages.render
    monkeypatch.setattr(
        pages.PdfiumPages, "render", lambda self, index, *how: drawn.append(index) or draw(self, index, *how)
    )
    stack = read_document(make_pdf(pages=[(612, 792)] * 9), max_pages=3)
    assert drawn == stack.indices == [0, 4, 8]
    assert stack.num_pages == 9
    assert all(page.dtype == np.uint8 for page in stack.pages)


def test_spread_keeps_both_ends_and_even_gaps():
    for num_pages in (1, 2, 5, 64, 65, 127, 1000):
        for most in (1, 2, 3, 63, 64, None):
            places = spread(num_pages, most)
            assert len(places) == min(num_pages, most or num_pages)
            assert places[0] == 0
            assert len(places) == 1 or places[-1] == num_pages - 1
            gaps = np.diff(places)
            assert len(places) < 2 or (gaps.min() >= 1 and np.ptp(gaps) <= 1)
    with pytest.raises(ValueError, match="max_pages"):
        spread(3, 0)


def test_a_tiff_has_its_frames_as_pages(tmp_path):
    frames = [Image.new("L", (30, 40), shade) for shade in (0, 100, 200)]
    frames[0].save(tmp_path / "scan.tif", save_all=True, append_images=frames[1:])
    stack = read_document(tmp_path / "scan.tif", Rendering(mode="L"))
    assert [int(page.mean()) for page in stack.pages] == [0, 100, 200]
    assert stack.pages[0].shape == (224, 160) or stack.pages[0].shape == (224, 176)


def test_a_folder_of_page_images_is_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        image_file(tmp_path / "scan" / f"p{number}.png", color=number, mode="L")
    (tmp_path / "scan" / ".hidden.png").write_bytes(b"")
    stack = read_document(tmp_path / "scan", Rendering(mode="L"))
    assert [int(page.mean()) for page in stack.pages] == [1, 2, 10]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif", "tif"])
def test_every_image_format_is_a_document_of_one_page(tmp_path, suffix):
    path = image_file(tmp_path / f"page.{suffix}", (80, 40), (200, 30, 60))
    page = read_document(path).pages[0]
    assert page.shape == (112, 224, 3)
    np.testing.assert_allclose(page.reshape(-1, 3).mean(0), [200, 30, 60], atol=6)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, 255),
        ("L", 90, 90),
        ("RGBA", (0, 0, 0, 0), 255),
        ("RGBA", (0, 0, 0, 255), 0),
        ("LA", (0, 128), 127),
        ("I;16", 32896, 128),
        ("I", 65535, 255),
        ("F", 0.5, 127),
        ("CMYK", (0, 0, 0, 0), 255),
        ("P", 0, 0),
    ],
)
def test_every_pixel_format_becomes_ink_on_white_paper(mode, color, expected):
    page = np.asarray(fit_image(Image.new(mode, (32, 32), color), Rendering()))
    assert page.shape == (224, 224, 3)
    np.testing.assert_allclose(page, expected, atol=1)


def test_a_transparent_palette_colour_is_white(tmp_path):
    Image.new("P", (32, 32), 0).save(tmp_path / "a.png", transparency=0)
    assert read_document(tmp_path / "a.png").pages[0].min() == 255


def test_exif_orientation_is_honoured(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = image_file(tmp_path / "photo.jpg", (800, 400), exif=exif)
    assert read_document(path).pages[0].shape == (224, 112, 3)


@pytest.mark.parametrize("name", ["-rf.pdf", "two words .pdf", "Übung 文.pdf", "~tilde.pdf", "no_suffix", "wrong.png"])
def test_names_do_not_matter_content_does(make_pdf, monkeypatch, name):
    path = make_pdf(name)
    monkeypatch.chdir(path.parent)
    assert read_document(name).num_pages == 1


def test_junk_before_the_header_is_passed_over(tmp_path):
    (tmp_path / "mail.pdf").write_bytes(b"x" * 900 + pdf_bytes())
    assert read_document(tmp_path / "mail.pdf").num_pages == 1


# --- what can be wrong

TINY_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
BAD_FILES = {
    "empty.pdf": (b"", Empty, "no content"),
    "zeros.pdf": (b"\0" * 999, Unreadable, "zero bytes"),
    "cut.pdf": (pdf_bytes([(612, 792)] * 4)[:1500], Unreadable, "cut off"),
    "header.pdf": (b"%PDF-1.7\n", Unreadable, "damaged"),
    "image.pdf": (TINY_PNG, Unreadable, "PNG image"),
    "page.pdf": (b"<!DOCTYPE html><html>", Unreadable, "HTML"),
    "locked.pdf": (ENCRYPTED, Encrypted, "password"),
    "none.pdf": (pdf_bytes([]), Empty, "no pages"),
    "million.pdf": (pdf_bytes(count=1_000_000), Unreadable, "1,000,000"),
    "loop.pdf": (pdf_bytes(kids="2 0 R", count=3), Unreadable, "page 3 of 3"),
    "huge.pdf": (pdf_bytes([(1e6, 1e6)]), TooLarge, "page 1"),
    "strip.pdf": (pdf_bytes([(10, 20_000)]), TooLarge, "strip"),
    "letter.docx": (b"PK\x03\x04", Unsupported, "ZIP"),
    "notes.txt": (b"hello", Unsupported, "text"),
    "page.png": (TINY_PNG[:40], Unreadable, "image"),
    "text.png": (b"hello", Unreadable, "text"),
}


@pytest.mark.usefixtures("no_poppler")
@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_typed_error(tmp_path, name):
    content, kind, said = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DocumentError, match=said) as caught:
        read_document(tmp_path / name)
    error = caught.value
    assert type(error) is kind
    assert error.as_dict() == {"type": kind.__name__, "message": error.message}
    assert error.path == str(tmp_path / name)


@pytest.mark.usefixtures("no_poppler")
def test_one_error_does_not_colour_the_next(tmp_path):
    for name in ("cut.pdf", "locked.pdf", "none.pdf", "cut.pdf", "none.pdf"):
        (tmp_path / name).write_bytes(BAD_FILES[name][0])
        with pytest.raises(BAD_FILES[name][1]):
            open_document(tmp_path / name)


@pytest.mark.parametrize("path", ["missing.pdf", "file.pdf/below.pdf", "a\0b.pdf"])
def test_a_missing_file_is_not_found(make_pdf, path):
    with pytest.raises(NotFound):
        open_document(make_pdf("file.pdf").parent / path)


def test_folders_that_are_no_document(tmp_path):
    (tmp_path / "x.pdf").mkdir()
    with pytest.raises(Unsupported, match="folder"):
        open_document(tmp_path / "x.pdf")
    (tmp_path / "plain").mkdir()
    with pytest.raises(Empty, match="no page images"):
        open_document(tmp_path / "plain")


def test_a_bad_page_in_a_folder_is_named(tmp_path):
    image_file(tmp_path / "scan" / "p1.png")
    (tmp_path / "scan" / "p2.png").write_bytes(b"")
    stack = read_document(tmp_path / "scan")
    assert (stack.indices, list(stack.failed)) == ([0], [1])
    assert stack.failed[1].startswith("p2.png: the file has no content")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(make_pdf):
    path = make_pdf()
    path.chmod(0)
    with pytest.raises(Unreadable, match="permission"):
        open_document(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_unsupported_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.pdf")
    with pytest.raises(Unsupported):
        open_document(tmp_path / "pipe.pdf")


def test_an_image_bomb_is_too_large(tmp_path, monkeypatch):
    path = image_file(tmp_path / "a.png", (300, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TooLarge, match="pixels"):
        open_document(path)


def test_errors_cross_processes():
    error = pickle.loads(pickle.dumps(TooLarge("a.pdf", "reduce it")))
    assert type(error) is TooLarge
    assert (error.path, error.message, error.kind, str(error)) == (
        "a.pdf", "reduce it", "TooLarge", "a.pdf: reduce it",
    )  # fmt: skip


# --- finding


def test_what_paths_stand_for(tmp_path, make_pdf):
    for name in ("c/b10.pdf", "c/b2.pdf", "c/.hidden.pdf", "c/deep/er/a.PDF"):
        make_pdf(name)
    image_file(tmp_path / "c" / "single.png")
    image_file(tmp_path / "c" / "scan" / "p1.png")
    image_file(tmp_path / "c" / "scan" / "p2.png")
    (tmp_path / "c" / "notes.txt").write_text("x")
    (tmp_path / "c" / "x.pdf").mkdir()
    (tmp_path / "void").mkdir()
    found = find_documents([tmp_path / "c", tmp_path / "void", tmp_path / "gone.pdf", str(tmp_path / "c/notes.txt")])
    names = [os.path.relpath(path, tmp_path).replace(os.sep, "/") for path in found]
    below = ["b2.pdf", "b10.pdf", "deep/er/a.PDF", "scan", "single.png", "x.pdf"]
    assert names == [f"c/{name}" for name in below] + ["void", "gone.pdf", "c/notes.txt"]


def test_links_that_lead_nowhere_or_in_a_circle_stop_nothing(tmp_path, make_pdf):
    make_pdf("c/a.pdf")
    for name in ("loop", "loop.pdf"):
        (tmp_path / "c" / name).symlink_to(name)
    (tmp_path / "c" / "up").symlink_to(tmp_path)
    (tmp_path / "c" / "gone.png").symlink_to("nowhere")
    assert [os.path.basename(p) for p in find_documents([tmp_path / "c"])] == ["a.pdf", "gone.png", "loop.pdf"]
    image_file(tmp_path / "scan" / "p1.png")
    (tmp_path / "scan" / "p2.png").symlink_to("p2.png")
    assert read_document(tmp_path / "scan").num_pages == 1


def test_worker_processes_need_no_torch():
    for module in (pages, sys.modules["docvit.documents.renderers"]):
        assert not hasattr(module, "torch")
