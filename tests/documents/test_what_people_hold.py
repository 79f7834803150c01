"""Paths, bytes, file objects, images and lists of pages are documents; so are files that are odd or damaged in part."""

from __future__ import annotations

import io
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ENCRYPTED, classed_pdf, pdf_bytes
from drawn import GRAY, gray
from PIL import Image

from docvit.documents import renderers
from docvit.documents.errors import Empty, Encrypted, TooLarge, Unreadable, Unsupported
from docvit.documents.finding import find_documents, find_passed_over
from docvit.documents.images import fit_image
from docvit.documents.pages import open_document, read_document
from docvit.documents.rendering import Rendering, parts_of
from docvit.documents.sources import as_source, is_one_document


@pytest.fixture
def page_image():
    """White paper with a black bar in its upper half."""
    pixels = np.full((400, 300), 255, np.uint8)
    pixels[50:100, 40:260] = 0
    return Image.fromarray(pixels)


# --- sources


def test_every_way_to_hold_a_pdf_gives_the_same_pages(make_pdf):
    path = make_pdf()
    content = path.read_bytes()
    expected = gray(str(path))
    with path.open("rb") as file:
        for data in (path, content, bytearray(content), io.BytesIO(content), file, as_source(content)):
            np.testing.assert_array_equal(gray(data), expected)


def test_a_file_of_a_data_set_is_its_bytes_or_its_path(make_pdf):
    file = make_pdf()
    path, content = str(file), file.read_bytes()
    for data in (
        {"bytes": content, "path": None},
        {"bytes": None, "path": path},
        {"bytes": bytearray(content), "path": "gone"},
    ):
        np.testing.assert_array_equal(gray(data), gray(path))
    assert as_source({"bytes": content, "path": "gone"}).name == "gone"


def test_images_and_lists_of_pages(tmp_path, page_image):
    page_image.save(tmp_path / "a.png")
    for data in (page_image, [page_image], (tmp_path / "a.png").read_bytes()):
        np.testing.assert_array_equal(gray(data), gray(tmp_path / "a.png"))
    mixed = [page_image, tmp_path / "a.png", (tmp_path / "a.png").read_bytes()]
    assert read_document(mixed, GRAY).indices == [0, 1, 2]
    assert pickle.loads(pickle.dumps(as_source(mixed))).name == "<3 pages>"  # it crosses processes
    with pytest.raises(Empty, match="without pages"):
        open_document([])


@pytest.mark.parametrize("wrong", [7, None, object(), io.StringIO("text"), [["a.png"]], {"path": "a.pdf"}])
def test_anything_else_is_one_short_error(wrong):
    with pytest.raises(ValueError, match=r"a document is|binary mode") as caught:
        open_document(wrong)
    assert len(str(caught.value)) < 150


def test_bytes_are_not_quoted_in_messages():
    with pytest.raises(Unsupported) as caught:
        open_document(b"nothing known " * 1000)
    assert len(str(caught.value)) < 200


def test_what_is_one_document_and_what_is_several(page_image):
    for one in (
        "a.pdf",
        b"",
        io.BytesIO(),
        page_image,
        [page_image, page_image],
        ["1.png", "2.JPG"],
        {"path": "a.pdf"},
    ):
        assert is_one_document(one)
    for several in (["a.pdf"], ["1.png", "a.pdf"], [], [[page_image]], iter(["1.png"]), {"a.pdf"}):
        assert not is_one_document(several)


def test_a_password_opens_a_pdf(tmp_path):
    assert len(open_document(ENCRYPTED, password="secret")) == 1
    with pytest.raises(Encrypted, match="password given does not open"):
        open_document(ENCRYPTED, password="wrong")
    with pytest.raises(Encrypted, match="password="):
        open_document(ENCRYPTED)


def test_a_pixel_below_black_is_black():
    white = np.full((32, 32), 255, np.int32)
    white[0, 0] = -1
    assert np.asarray(fit_image(Image.fromarray(white), GRAY)).mean() > 200


def test_names_of_255_bytes_are_read(tmp_path):
    path = tmp_path / ("é" * 125 + "a.pdf")
    path.write_bytes(pdf_bytes())
    assert len(os.fsencode(path.name)) == 255
    assert read_document(path, GRAY).num_pages == 1


# --- pages that fail, pages far from a page's proportions


@pytest.mark.parametrize("bad", [0, 2, 9])
def test_a_damaged_page_costs_that_page(tmp_path, bad):
    kids = [f"{3 + 2 * i} 0 R" for i in range(10)]
    kids[bad] = "99 0 R"
    stack = read_document(pdf_bytes([(612, 792)] * 10, kids=" ".join(kids)), GRAY)
    assert stack.indices == [i for i in range(10) if i != bad]
    assert list(stack.failed) == [bad]
    assert f"page {bad + 1} of 10" in stack.failed[bad]
    assert len(stack.pages) == 9


def test_a_document_of_nothing_but_damaged_pages_is_an_error():
    with pytest.raises(Unreadable, match="page"):
        read_document(pdf_bytes([(612, 792)] * 2, kids="99 0 R 98 0 R", count=2), GRAY)


@pytest.mark.parametrize(("sides", "count"), [((612, 792), 1), ((100, 400), 1), ((227, 5669), 17), ((3000, 500), 4)])
def test_a_page_far_longer_than_wide_is_cut_into_parts_that_tile_it(sides, count):
    parts = parts_of(*sides)
    assert len(parts) == count
    assert sum((right - left) * (bottom - top) for left, top, right, bottom in parts) == pytest.approx(1)
    assert parts[0][:2] == (0, 0)
    assert parts[-1][2:] == (1, 1)


def test_a_receipt_is_drawn_in_proportion_and_read_in_parts():
    lines = b" ".join(b"20 %d 187 8 re f" % y for y in range(10, 5600, 22))
    receipt = pdf_bytes([(227, 5669)], contents=[lines])
    whole = gray(receipt)
    assert whole.shape[0] / whole.shape[1] == pytest.approx(5669 / 227, rel=0.1)
    stack = read_document(receipt, GRAY)
    assert (stack.indices, stack.num_pages) == (list(range(17)), 17)
    assert "read in parts" in stack.note
    for page in stack.pages:  # the ink is as dense in every part, and black
        assert (page < 128).mean() == pytest.approx(187 * 8 / 22 / 227, abs=0.06)
    assert len(read_document(receipt, GRAY, max_pages=4).pages) == 4


def test_parts_of_a_wide_image_are_its_columns(tmp_path):
    pixels = np.repeat(np.arange(6, dtype=np.uint8) * 40, 134)[None].repeat(100, 0)
    stack = read_document(Image.fromarray(pixels), GRAY)
    assert len(stack.pages) == 6
    np.testing.assert_allclose([p.mean() for p in stack.pages], pixels.reshape(100, 6, -1).mean((0, 2)), atol=3)


def test_a_page_beyond_14400_points_is_drawn():
    assert gray(pdf_bytes([(612, 20_000)])).min() < 200


# --- images of every kind


@pytest.mark.parametrize("suffix", ["jp2", "avif", "ppm", "pgm", "pbm", "jfif", "tif", "png"])
def test_formats_of_scanners_and_telephones(tmp_path, page_image, suffix):
    page_image.convert({"ppm": "RGB", "pbm": "1"}.get(suffix, "L")).save(tmp_path / f"a.{suffix}")
    found = read_document(tmp_path / f"a.{suffix}", GRAY).pages[0]
    assert abs(found.astype(float) - gray(page_image)).mean() < 4
    assert find_documents([tmp_path]) == [str(tmp_path if suffix != "tif" else tmp_path / "a.tif")]


def tiff(pixels, photometric, bits, path):
    """An uncompressed TIFF of one strip, written by hand."""
    import struct

    height, width = pixels.shape
    data = pixels.astype(f"<u{bits // 8}").tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    ifd = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags)
    ifd += struct.pack("<HHII", 279, 4, 1, len(data))
    start = 8 + len(data)
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", 9) + ifd + b"\0" * 4)


@pytest.mark.parametrize(("bits", "photometric"), [(8, 0), (8, 1), (16, 0), (16, 1), (32, 1)])
def test_white_is_white_whatever_number_stands_for_it(tmp_path, page_image, bits, photometric):
    white = 2**bits - 1
    pixels = np.asarray(page_image, np.int64) * white // 255
    tiff(white - pixels if photometric == 0 else pixels, photometric, bits, tmp_path / "a.tif")
    np.testing.assert_allclose(gray(tmp_path / "a.tif"), gray(page_image), atol=1)


def test_lab_cmyk_and_palette_are_seen_in_their_colours():
    for mode, color, expected in [("LAB", (255, 128, 128), 255), ("CMYK", (0, 0, 0, 255), 0), ("La", (0, 0), 255)]:
        page = np.asarray(fit_image(Image.new(mode, (32, 32), color), GRAY))
        np.testing.assert_allclose(page, expected, atol=2)


def test_an_image_is_judged_by_its_bytes_and_not_by_its_pixels(tmp_path, monkeypatch):
    Image.new("1", (300, 300), 1).save(tmp_path / "bits.tif", compression="group4")
    Image.new("RGB", (300, 300)).save(tmp_path / "colour.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)  # Pillow refuses twice as many pixels: 40,000
    assert gray(tmp_path / "bits.tif").min() == 255
    with pytest.raises(TooLarge, match="MB"):
        open_document(tmp_path / "colour.tif")
    assert Image.MAX_IMAGE_PIXELS == 20_000


@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 9, 77])
def test_exif_in_any_state(tmp_path, page_image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    page_image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    turned = {3: page_image.rotate(180), 6: page_image.transpose(Image.Transpose.ROTATE_270)}
    expected = gray(turned.get(orientation, page_image))
    assert abs(gray(tmp_path / "a.jpg") - expected).mean() < 3


def test_damaged_exif_costs_nothing(tmp_path, page_image):
    page_image.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage", quality=95)
    assert abs(gray(tmp_path / "a.jpg") - gray(page_image)).mean() < 3


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_read_as_far_as_it_goes(tmp_path, suffix):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (400, 304), dtype=np.uint8)).save(tmp_path / f"a.{suffix}")
    content = (tmp_path / f"a.{suffix}").read_bytes()
    stack = read_document(content[: len(content) // 2], GRAY)
    assert "cut off" in stack.note
    (page,) = stack.pages
    assert page[:96].std() > 10
    assert page[160:].min() == 255  # white paper, not what a decoder leaves there
    assert "cut off" not in read_document(content, GRAY).note
    with pytest.raises(Unreadable):
        read_document(content[:60] if suffix == "png" else content[: content.index(b"\xff\xda")], GRAY)


def test_reduced_copies_and_masks_in_a_tiff_are_no_pages(tmp_path, page_image):
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    def tagged(kind):
        tags = ImageFileDirectory_v2()
        tags[254] = kind
        return tags

    with Image.new("L", (10, 10)).copy() as small:
        small.encoderinfo = {"tiffinfo": tagged(1)}
        small.save(tmp_path / "thumb.tif", tiffinfo=tagged(1))
        page_image.save(tmp_path / "a.tif", save_all=True, append_images=[small, page_image])
    stack = read_document(tmp_path / "a.tif", GRAY)
    assert stack.num_pages == 2
    assert read_document(tmp_path / "thumb.tif", GRAY).num_pages == 1  # if there is nothing else


def test_a_tiff_that_is_cut_off_between_pages_says_so(page_image):
    whole = io.BytesIO()
    page_image.save(whole, "TIFF", save_all=True, append_images=[page_image] * 3)
    stack = read_document(whole.getvalue()[: len(whole.getvalue()) // 2], GRAY)
    assert stack.num_pages < 4
    assert f"cut off after page {stack.num_pages}" in stack.note
    assert not read_document(whole.getvalue(), GRAY).note


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_long_image_is_decoded_once_and_a_larger_size_is_not_made_of_a_smaller_one(tmp_path, monkeypatch, suffix):
    Image.effect_noise((64, 64 * 90), 90).save(tmp_path / f"a.{suffix}")
    opened, original = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **o: opened.append(1) or original(*a, **o))
    stack = read_document(tmp_path / f"a.{suffix}", Rendering(size=16, multiple=8, mode="L"))
    assert len(stack.pages) == 60
    assert len(opened) == 1
    Image.effect_noise((512, 512), 90).save(tmp_path / f"b.{suffix}")
    with open_document(tmp_path / f"b.{suffix}") as document:
        small, large = (Rendering(size=size, multiple=8, mode="L") for size in (32, 512))
        document.render(0, small)
        assert np.array(document.render(0, large)).std() > 50  # of noise; small made large, it would be smooth


def test_a_strip_that_is_no_page_fails_once(tmp_path):
    stack = read_document(pdf_bytes([(612, 792), (400_000, 10)]), GRAY)
    assert (stack.num_pages, stack.indices, list(stack.failed)) == (2, [0], [1])


# --- threads


def test_several_threads_draw_what_one_does_and_never_within_pdfium_at_once(make_pdf, monkeypatch):
    inside, most, draw = [], [], renderers.pdfium.FPDF_RenderPageBitmap

    def watched(*arguments):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)
        draw(*arguments)
        inside.pop()

    monkeypatch.setattr(renderers.pdfium, "FPDF_RenderPageBitmap", watched)
    paths = [str(make_pdf(f"{i}.pdf", [(612, 792)] * 3)) for i in range(4)]
    expected = {path: read_document(path, GRAY).pages for path in paths}
    with ThreadPoolExecutor(8) as threads:
        for path, stack in zip(paths * 6, threads.map(lambda p: read_document(p, GRAY), paths * 6), strict=True):
            for ours, theirs in zip(stack.pages, expected[path], strict=True):
                np.testing.assert_array_equal(ours, theirs)
    assert max(most) == 1


# --- folders


def test_what_is_passed_over_is_listed_and_outputs_are_no_data(tmp_path):
    for name in ("a/one.pdf", "a/notes.docx", "a/.hidden.docx", "run/curves.png", "run/recipe.json", "deep/er/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(classed_pdf("text", 1) if name.endswith("pdf") else b"x")
    assert find_documents([tmp_path]) == [str(tmp_path / "a" / "one.pdf")]
    assert find_passed_over([tmp_path]) == [str(tmp_path / n) for n in ("a/notes.docx", "deep/er/x", "run")]


def test_words_of_a_page_read_in_parts_lie_in_their_part():
    def line(y, text):
        return b"BT /F 18 Tf 20 %d Td (%s) Tj ET" % (y, text)

    drawn = b" ".join([line(2990, b"first"), line(1510, b"middle"), line(10, b"last")])
    font = "/Resources<</Font<</F<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>>>>>"
    stack = read_document(pdf_bytes([(500, 3000)], extra=font, contents=[drawn]), GRAY, words=True)
    assert [[word.text for word in words] for words in stack.words] == [["first"], ["middle"], [], ["last"]]
    first, last = stack.words[0][0].box, stack.words[-1][0].box
    assert first[1] < 0.05
    assert last[3] > 0.95
    assert last[3] - last[1] == pytest.approx(4 * 14 / 3000, abs=0.01)  # four times as high as on the whole page
