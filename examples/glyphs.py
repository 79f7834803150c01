"""Digits at the edges of pages, found by their ink and read by a small DocViT that has learnt on drawn ones.

What could be a digit is found in the uppermost and lowest parts of a page, and read as a document of one page,
16 x 16 px. No real document is learnt from, so that whole sources stay unseen; sizes and gaps below were settled by
looking at real ones.
"""

from __future__ import annotations

import string
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm

from docvit import DocViT, PatchSequence, create_model
from docvit.data.dataset import DocumentBatch
from docvit.training.loop import TrainSettings, fit

Pixels = NDArray[np.uint8]

EDGE = 0.13  # of a page's height, at its top and at its bottom
CONTRAST = 50  # grey levels between ink and what is around it
BACKGROUND = 25  # px: what is wider is no stroke
SHORTEST, TALLEST = 6, 48  # px
WIDEST, LONGEST = 1.1, 8  # times their height: digits and most letters; letters that touch
MOST = 100  # glyphs of one edge: those nearest to it
SIDE, PATCH = 16, 8  # px of a glyph as it is read
LETTER, OTHER = 10, 11  # the classes of what is no digit


class Glyphs(NamedTuple):
    """K of them: images (K, 16, 16), ink 255, and boxes (K, 4) in px of the page: left, top, right, bottom."""

    images: Pixels
    boxes: NDArray[np.int64]


def find_glyphs(page: Pixels) -> Glyphs:
    """What could be a digit, or a letter beside it, at the edges of a grey page (H, W), in dark ink."""
    height = len(page)
    depth = int(EDGE * height)
    images, boxes = [], []
    for top, above in ((0, True), (height - depth, False)):
        edge = page[top : top + depth].astype(np.int16)
        ink = (ndimage.grey_closing(edge, (BACKGROUND, BACKGROUND)) - edge).clip(0, 255)
        found = []
        for rows, cols in ndimage.find_objects(ndimage.label(ink > CONTRAST, np.ones((3, 3)))[0]):
            tall, wide = rows.stop - rows.start, cols.stop - cols.start
            cut = rows.stop == depth if above else rows.start == 0
            if SHORTEST <= tall <= TALLEST and wide <= LONGEST * tall and not cut and _on_paper(edge, rows, cols):
                found.append((rows.start if above else depth - rows.stop, rows, cols))
        for _, rows, cols in sorted(found, key=lambda glyph: glyph[0])[:MOST]:
            images.append(fit_glyph(ink[rows, cols]))
            boxes.append((cols.start, top + rows.start, cols.stop, top + rows.stop))
    return Glyphs(np.array(images, np.uint8).reshape(-1, SIDE, SIDE), np.array(boxes, np.int64).reshape(-1, 4))


def _on_paper(edge: NDArray[np.int16], rows: slice, cols: slice) -> bool:
    """Whether most of what is in a box and close around it is lighter than its ink: not a gap between light letters."""
    margin = max(3, (rows.stop - rows.start) // 4)
    around = edge[max(0, rows.start - margin) : rows.stop + margin, max(0, cols.start - margin) : cols.stop + margin]
    return bool((around > edge[rows, cols].min() + CONTRAST).mean() > 0.5)


def fit_glyph(ink: NDArray[np.number], stretch: float = 1.0) -> Pixels:
    """Ink (H, W) from 0 to 255, as high as can be read and as dark as can be: (16, 16)"""
    height, width = ink.shape
    shades = (ink * (255 / max(CONTRAST, ink.max()))).clip(0, 255).astype(np.uint8)
    scale = (SIDE - 2) / height
    size = max(1, min(SIDE - 1, round(width * scale * stretch))), SIDE - 2
    smooth = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    glyph = np.zeros((SIDE, SIDE), np.uint8)
    left = (SIDE - size[0]) // 2
    glyph[1:-1, left : left + size[0]] = np.asarray(Image.fromarray(shades).resize(size, smooth))
    return glyph


FACES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr", "cmb", "cmss", "cmtt", "cmti")  # matplotlib brings them
SIGNS = ("cmmi10", "cmsy10", "cmex10", "STIXNonUni")
PLAIN = 6  # Pillow's own font is drawn as often as so many others
LETTERS, MARKS = list(string.ascii_letters + "äéßøλπΣ"), list(string.punctuation + "•–©§°×±")


@cache
def _fonts(names: tuple[str, ...]) -> list[Path | None]:
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return [file for file in sorted(folder.glob("*.ttf")) if file.name.startswith(names) and "Display" not in file.name]


@cache
def _font(file: Path | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def draw_glyph(random: np.random.Generator) -> tuple[Pixels, int]:
    """A glyph (16, 16) and its class: digits, letters and anything else that may be found."""
    while True:
        kind, size = random.random(), int(np.exp(random.uniform(np.log(9), np.log(48))))
        faces, drawn = [None] * PLAIN + _fonts(FACES), OTHER
        face = faces[random.integers(len(faces))]
        if kind < 0.45:
            drawn = int(random.integers(10))
            text = str(drawn)
        elif kind < 0.75:
            text, drawn = "".join(random.choice(LETTERS, random.choice([1, 2], p=[0.85, 0.15]))), LETTER
        elif kind < 0.85:
            text = random.choice(MARKS)
        elif kind < 0.9:
            text, face = chr(random.integers(33, 127)), random.choice(np.array(_fonts(SIGNS), object))
        elif kind < 0.95:
            text = f"{random.integers(10, 100)}"  # digits that touch
        else:
            text = ""
        ink = _write(text, _font(face, size), random) if text else _shape(random)
        if random.random() < 0.15:
            ink = _sheared(ink, random.uniform(-0.1, 0.3))
        inked = ink > random.uniform(60, 100)
        rows, cols = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
        if len(rows) and (tall := rows[-1] - rows[0] + 1) >= SHORTEST and cols[-1] - cols[0] < WIDEST * tall:
            ink = ink[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1].astype(float)
            heavier = (ink / ink.max()) ** random.uniform(0.6, 1.6)
            return fit_glyph(255 * heavier, random.uniform(0.8, 1.2)), drawn


def _write(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, random: np.random.Generator) -> Pixels:
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
    x, y = 4 - left + random.random(), 4 - top + random.random()
    ImageDraw.Draw(image).text((x, y), text, 255, font)
    return np.asarray(image)


def _sheared(ink: Pixels, by: float) -> Pixels:
    image = Image.fromarray(ink)
    how = (1, by, -by * image.height / 2, 0, 1, 0)
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, how, Image.Resampling.BILINEAR))


def _shape(random: np.random.Generator) -> Pixels:
    """A box, a box's outline, crossing rules, a slope or noise."""
    ink = np.zeros((random.integers(8, 40), random.integers(4, 40)), np.uint8)
    y, x = (int(random.integers(0, side)) for side in ink.shape)
    kind = random.random()
    if kind < 0.4:
        ink[:] = 255
        if kind < 0.15:
            ink[2:-2, 2:-2] = 0
    elif kind < 0.6:
        ink[y : y + 3], ink[:, x : x + 2] = 255, 255
    elif kind < 0.8:
        ink[:] = np.linspace(0, 255, ink.shape[1])
    else:
        ink[:] = random.integers(0, 255, ink.shape)
    return ink


def sequence_of(glyphs: Pixels) -> PatchSequence:
    """Glyphs (B, 16, 16) as documents of one page each, every patch kept."""
    pixels = torch.from_numpy(glyphs).float() / 127.5 - 1
    patches = rearrange(pixels, "b (r y) (c x) -> (b r c) (y x)", y=PATCH, x=PATCH)
    grid, count = SIDE // PATCH, len(glyphs)
    places = torch.arange(grid**2).repeat(count)
    nothing = torch.zeros_like(places)
    return PatchSequence(
        patches=patches,
        page=nothing,
        row=places // grid,
        col=places % grid,
        grids=torch.full((count, 2), grid),
        page_index=nothing[:count],
        page_bounds=grid**2 * torch.arange(count + 1),
        document_bounds=torch.arange(count + 1),
    )


class Drawn:
    """Batches of drawn glyphs, every time all moved a little."""

    def __init__(self, glyphs: int, size: int, seed: int) -> None:
        if glyphs < size:
            raise ValueError(f"at least a batch of {size} glyphs, not {glyphs}")
        random = np.random.default_rng(seed)
        drawn = [draw_glyph(random) for _ in tqdm(range(glyphs), desc="drawing", unit="glyph", disable=None)]
        self.glyphs, self.classes = np.stack([g for g, _ in drawn]), torch.tensor([c for _, c in drawn])
        self.size, self.seed, self.epoch, self.skip = size, seed, 0, 0

    def __len__(self) -> int:
        return len(self.glyphs) // self.size

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[DocumentBatch]:
        random = np.random.default_rng((self.seed, self.epoch))
        order, moves = random.permutation(len(self.glyphs)), random.integers(-1, 2, (len(self), 2))
        for step in range(self.skip, len(self)):
            places = order[step * self.size : (step + 1) * self.size]
            moved = np.roll(self.glyphs[places], moves[step], (1, 2))
            yield DocumentBatch(sequence_of(moved), self.classes[places], torch.from_numpy(places))


def train_reader(glyphs: int, epochs: int, *, seed: int = 0) -> DocViT:
    """A model that reads glyphs, after so many drawn ones, so many times each."""
    torch.manual_seed(seed)
    model = create_model(
        "docvit_compact_patch32",
        **{"num_classes": OTHER + 1, "embed_dim": 96, "depth": 3, "num_heads": 3, "pooling": "mean", "scopes": "page"},
        **{"stem": "conv", "in_chans": 1, "patch_size": PATCH, "grid": (SIDE // PATCH,) * 2, "max_pages": 1},
    )

    def loss(model: nn.Module, batch: DocumentBatch, progress: float) -> dict[str, Tensor]:
        return {"loss": F.cross_entropy(model(batch.sequence).float(), batch.labels, label_smoothing=0.02)}

    settings = TrainSettings(epochs=epochs, lr=2e-3, weight_decay=0.05, bf16=False, seed=seed)
    fit(model, Drawn(glyphs, 256, seed), loss, settings, description="learning to read")
    return model.eval()


@torch.inference_mode()
def read_glyphs(model: DocViT, glyphs: Glyphs) -> NDArray[np.int64]:
    """The class of each glyph: (K,). What is wider than a digit is taken for letters that touch."""
    some = np.array_split(glyphs.images, len(glyphs.images) // 2048 + 1)
    logits = torch.cat([model(sequence_of(images)) for images in some if len(images)] or [torch.zeros(0, OTHER + 1)])
    left, top, right, bottom = glyphs.boxes.T
    return np.where(right - left > WIDEST * (bottom - top), LETTER, logits.argmax(1).numpy())
