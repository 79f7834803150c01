"""Empty sheets are blank in spite of what a scanner leaves on them; pages with anything on them are not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from docvit.documents.empty_sheets import is_empty_sheet
from docvit.documents.pages import PageStack
from docvit.documents.patches import pack
from docvit.documents.words import Words

SIZE = 256, 198  # px, of a letter page


def sheet(*, shadow=0.0, noise=0.0, border=0, holes=0, side="left"):
    """What a scanner leaves on an empty sheet, (256, 198) in grey levels."""
    random = np.random.default_rng(0)
    ground = 250 - shadow * np.linspace(0, 1, SIZE[1]) + noise * random.standard_normal(SIZE)
    page = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(page)
    if border:
        draw.rectangle((0, 0, SIZE[1], border - 1), fill=20)
        draw.rectangle((0, 0, border - 1, SIZE[0]), fill=20)
    for n in range(holes):
        y = SIZE[0] * (n + 1) // (holes + 1)
        x = {"left": border + 9, "right": SIZE[1] - 9}[side]
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=25)
    return page


TRACES = [
    {},
    {"shadow": 30.0},
    {"noise": 3.0},
    {"border": 8},
    {"holes": 2},
    {"holes": 4, "side": "right"},
    {"shadow": 30.0, "noise": 3.0, "border": 8, "holes": 2},
]


@pytest.mark.parametrize("traces", TRACES, ids=str)
def test_an_empty_sheet_is_known_by_any_scanner(traces):
    page = np.array(sheet(**traces))
    assert is_empty_sheet(page)
    assert is_empty_sheet(np.stack([page] * 3, 2))
    assert is_empty_sheet(np.ascontiguousarray(np.rot90(page)))


DRAWN = {
    "a line of text": lambda draw: draw.text((60, 120), "intentionally left blank", fill=60),
    "a page number": lambda draw: draw.text((96, 240), "17", fill=60),
    "a note in the margin": lambda draw: draw.text((3, 100), "NB!", fill=60),
    "a rule": lambda draw: draw.line((30, 100, 170, 100), fill=170),
    "a frame": lambda draw: draw.rectangle((30, 30, 170, 220), outline=100),
    "a dark block in the margin": lambda draw: draw.rectangle((4, 100, 10, 150), fill=30),
    "a letterhead above a rule": lambda draw: (
        draw.text((30, 3), "ACME", fill=60),
        draw.line((9, 16, 188, 16), fill=40),
    ),
    "a footer below a rule": lambda draw: (
        draw.text((90, 243), "3/12", fill=60),
        draw.line((9, 241, 188, 241), fill=40),
    ),
    "a title in a dark band": lambda draw: (
        draw.rectangle((0, 0, 197, 16), fill=20),
        draw.text((10, 2), "Annual report", fill=255),
    ),
    "one black spot in the margin": lambda draw: draw.ellipse((16, 100, 22, 106), fill=25),
    "spots down the margin": lambda draw: [draw.ellipse((16, y, 22, y + 6), fill=25) for y in range(40, 180, 20)],
    "spots at one end of the margin": lambda draw: [draw.ellipse((16, y, 22, y + 6), fill=25) for y in (20, 40)],
    "squares to register a form by": lambda draw: [draw.rectangle((14, y, 19, y + 5), fill=0) for y in (40, 210)],
    "a page of grey text": lambda draw: [draw.text((12, y), "clause " * 5, fill=190) for y in range(12, 230, 11)],
    "a pale square": lambda draw: draw.rectangle((48, 48, 143, 143), fill=228),
    "a stamp": lambda draw: draw.ellipse((120, 180, 150, 210), outline=90, width=2),
    "a spot in the middle": lambda draw: draw.ellipse((96, 125, 102, 131), fill=25),
}


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("traces", [TRACES[0], TRACES[-1]], ids=["clean", "scanned"])
def test_whatever_is_on_a_page_keeps_it(drawn, traces):
    page = sheet(**traces)
    DRAWN[drawn](ImageDraw.Draw(page))
    assert not is_empty_sheet(np.array(page))


def test_a_tiny_picture_is_no_sheet():
    assert not is_empty_sheet(np.full((48, 48), 255, np.uint8))


def test_colour_along_an_edge_is_no_edge_of_a_sheet():
    page = np.full((*SIZE, 3), 255, np.uint8)
    page[:12] = (250, 170, 0)
    assert not is_empty_sheet(page)


def test_ink_that_differs_from_coloured_paper_in_some_channels_alone_is_seen():
    page = np.full((*SIZE, 3), (250, 240, 150), np.uint8)
    page[100:104, 50:150] = 150
    assert not is_empty_sheet(page)
    assert not is_empty_sheet(255 - page)


def test_white_on_black_along_an_edge_is_seen():
    page = np.zeros(SIZE, np.uint8)
    page[244:248, 95:101] = 255
    assert not is_empty_sheet(page)


def test_pictures_and_noise_are_no_empty_sheets():
    random = np.random.default_rng(0)
    assert not is_empty_sheet(random.integers(0, 256, SIZE, dtype=np.uint8))
    assert not is_empty_sheet((np.indices(SIZE).sum(0) // 2).astype(np.uint8))  # a gradient from black to grey


def test_an_empty_sheet_has_no_patches_unless_it_has_words():
    page = np.array(sheet(**TRACES[-1]).resize((192, 256)))
    words = Words(("unseen",), np.array([[0.4, 0.4, 0.6, 0.5]]), "text")
    stacks = [PageStack("a.pdf", [page, 255 - page], [0, 1], 2), PageStack("b.pdf", [page], [0], 1, words=[words])]
    batch = pack(stacks, 32, channels=1, words=True)
    counts = batch.page_bounds.diff().tolist()
    assert counts[0] == 0
    assert counts[1] == 48  # its negative is a picture
    assert counts[2] > 1
    assert pack(stacks[:1], 32, channels=1, drop_blank=False).num_patches == 96
