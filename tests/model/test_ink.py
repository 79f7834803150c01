"""Ink features and page statistics against a second implementation: NumPy in float64, patch by patch."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import close

from docvit.documents.patches import PatchSequence, pack
from docvit.model import ink

P = 32


def batch_of(patches, *lengths):
    """Pages of so many patches (T, C, P, P), each page's in reading order from its top."""
    counts, cells = torch.tensor(lengths), torch.cat([torch.arange(n) for n in lengths])
    index = torch.arange(len(lengths))
    return PatchSequence(
        patches=patches.flatten(1),
        page=index.repeat_interleave(counts),
        row=cells // 4,
        col=cells % 4,
        grids=torch.tensor([[8, 4]] * len(lengths)),
        page_index=index,
        page_bounds=F.pad(counts.cumsum(0), (1, 0)),
        document_bounds=torch.tensor([0, len(lengths)]),
    )


def noise(count, channels=1, side=P):
    """Patches from next to no contrast to full contrast, so that every threshold lies between some of them."""
    generator = torch.Generator().manual_seed(1)
    contrast = torch.tensor([1e-9, 6e-9, 1e-4, 0.01, 0.1, 0.3, 1, 2, 3])[:count, None, None, None]
    return torch.randn(count, channels, side, side, generator=generator) * contrast


def statistics_of(patches, *lengths):
    """(texture, layout) of each page."""
    found = ink.page_statistics(ink.measure(patches), batch_of(patches, *lengths), torch.tensor(lengths))
    return found[:, : -ink.LAYOUT], found[:, -ink.LAYOUT :]


# The second implementation


def gradients(image):
    """Differences of each pixel's neighbours, across and down; at the border the pixel itself stands for a missing one.

    (S, S) -> (S, S) each
    """
    size, across, down = len(image), np.zeros(image.shape), np.zeros(image.shape)
    for y in range(size):
        for x in range(size):
            across[y, x] = image[y, min(x + 1, size - 1)] - image[y, max(x - 1, 0)]
            down[y, x] = image[min(y + 1, size - 1), x] - image[max(y - 1, 0), x]
    return across, down


def in_cells(image, side):
    """Means over cells of `side` pixels: (..., S, S) -> (..., S / side, S / side)"""
    *more, size, _ = image.shape
    return image.reshape(*more, size // side, side, size // side, side).mean((-3, -1))


def ink_of(patch):
    """Ink, and of RGB how colourful each cell is: (C, P, P) -> (K, c, c)"""
    found = [in_cells(patch.mean(0), 16)]
    if len(patch) > 1:
        found.append(np.sqrt(in_cells(patch.max(0) - patch.min(0), 16)))
    return np.stack(found)


def edges_of(patch):
    """Strength of edges in eight directions at three scales: (C, P, P) -> 3 of (8, c, c)"""
    image, side, found = patch.mean(0), 16, []
    for _ in range(3):
        across, down = gradients(image)
        turned = [np.cos(i * np.pi / 8) * across + np.sin(i * np.pi / 8) * down for i in range(8)]
        found.append(np.sqrt(in_cells(np.abs(np.stack(turned)), side)))
        image, side = in_cells(image, 2), side // 2
    return found


def features_of(patch):
    """Ink, and the edges of the two finer scales by their norm over the patch."""
    finer = [edges / (np.sqrt((edges**2).sum()) + 0.3) for edges in edges_of(patch)[:2]]
    return np.concatenate([part.ravel() for part in (ink_of(patch), *finer)])


def cells_of(patch):
    """Ink, edges, and edges by their norm over the cell: one row per cell."""
    edges = edges_of(patch)
    within = [e / (np.sqrt((e**2).sum(0)) + 0.05) for e in edges]
    stacked = np.concatenate([ink_of(patch), *edges, *within])
    return stacked.reshape(len(stacked), -1).T


def texture_of(patches):
    """Mean and deviation over inked cells, then modulation and lines, of the patches of a page (n, C, P, P)."""
    patches = patches.double().numpy()
    kinds, side = (1 if patches.shape[1] == 1 else 2), patches.shape[-1]
    cells = [cells_of(patch) for patch in patches]
    inked = [rows[rows[:, kinds:].sum(1) > 0.02] for rows in cells]
    count, inked = sum(len(rows) > 0 for rows in inked), np.concatenate(inked)
    levels, changes, correlation = np.zeros((3, 1, 4)), np.zeros((3, 2, 4)), np.zeros(side)
    for patch in patches.mean(1):
        across, down = gradients(patch)
        for direction, along in enumerate((across, down, (across + down) / 2**0.5, (across - down) / 2**0.5)):
            strength = np.abs(along)
            for scale in range(3):
                strength = in_cells(strength, 2)
                levels[scale, 0, direction] += strength.mean()
                changes[scale, 0, direction] += np.abs(np.diff(strength, axis=1)).mean()
                changes[scale, 1, direction] += np.abs(np.diff(strength, axis=0)).mean()
        rows = np.abs(across).mean(1) - np.abs(across).mean()
        correlation += [rows[: side - lag] @ rows[lag:] for lag in range(side)]
    deviation = np.sqrt(np.maximum(inked.var(0), 1e-6))
    modulation = (changes / count / (levels / count + 0.04)).ravel()
    lines = correlation[1 : 3 * side // 4 + 1] / (correlation[0] + count * 2 * side * 3e-5)
    return np.concatenate([inked.mean(0), deviation, modulation, lines])


def layout_of(page, side):
    """Of a whole page (H, W) cut into patches: shape, bounds, profiles, heights of rows and of the gaps between."""
    height, width = page.shape
    on = np.zeros(page.shape, dtype=bool)
    for y in range(0, height, side):
        for x in range(0, width, side):
            across, down = gradients(page[y : y + side, x : x + side])
            on[y : y + side, x : x + side] = np.abs(across) + np.abs(down) > 0.4
    lines = (np.arange(256) + 0.5) / 256
    down, across = on.mean(1)[(lines * height).astype(int)], on.mean(0)[(lines * width).astype(int)]
    found = [[width / height]]
    for profile, bins in ((down, 32), (across, 16)):
        (inked,) = np.nonzero(profile > 0.005)
        first, last = (inked[0], inked[-1]) if len(inked) else (256, -1)
        found += [[first / 256, (255 - last) / 256], profile.reshape(bins, -1).mean(1)]
        if bins == 32:
            within = profile[first : last + 1] > 0.005
            for wanted in (True, False):
                runs = [len(list(run)) for value, run in groupby(within) if value == wanted] or [0]
                count = len(runs) if runs != [0] else 0
                found.append(np.array([count, *(np.mean(runs), max(runs), runs[0], runs[-1])]) / 256)
    return np.concatenate(found)


# Against it


@torch.no_grad()
@pytest.mark.parametrize("side", [16, 32, 48])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_of_patches(channels, side):
    patches = noise(6, channels, side)
    found = ink.patch_features(ink.measure(patches))
    assert found.shape[1] == ink.sizes(channels, side)[0]
    expected = np.stack([features_of(patch) for patch in patches.double().numpy()])
    close(found, torch.from_numpy(expected).float(), 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", [16, 32, 48])
@pytest.mark.parametrize("channels", [1, 3])
def test_texture_of_pages(channels, side):
    order = torch.tensor([0, 5, 8, 2, 4, 6, 3, 1, 7, 2])  # pages of every contrast; at last a faint page
    patches = noise(9, channels, side)[order]
    patches[4, :, :20] = 0.0  # the cells at the top are empty, and so are the pixels next to them
    patches[6] = torch.tensor([0.7, 0.1, 0.1])[:channels, None, None]  # a colour, which is no ink
    texture, layout = statistics_of(patches, 4, 5, 1)
    assert texture.shape[1] + layout.shape[1] == ink.sizes(channels, side)[1]
    expected = np.stack([texture_of(page) for page in patches.split([4, 5, 1])])
    close(texture, torch.from_numpy(expected).float(), 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("drop_blank", [True, False])
def test_layout_of_pages(drop_blank):
    random, documents = np.random.default_rng(0), []
    for height, width in ((192, 128), (128, 192), (320, 64), (64, 64), (256, 192)):
        page = np.full((height, width), 255, dtype=np.uint8)
        for _ in range(6):  # blocks, some of them too pale to count, and noise around the threshold
            y, x = int(random.integers(height - 8)), int(random.integers(width - 8))
            rows, cols = random.integers(1, 30, 2)
            page[y : y + rows, x : x + cols] = random.choice([0, 120, 250])
            page[y : y + 3, :] = random.integers(215, 255, page[y : y + 3].shape)
        documents.append([page, np.full((height, width), 255, dtype=np.uint8)])  # and an empty one
    batch = pack(documents, P, channels=1, mean=(0.9,), std=(0.25,), drop_blank=drop_blank)
    maps = ink.measure(batch.patches.unflatten(1, (1, P, P)))
    found = ink.page_statistics(maps, batch, batch.page_bounds.diff())
    expected = [layout_of((page / 255 - 0.9) / 0.25, P) for pages in documents for page in pages]
    close(found[:, -ink.LAYOUT :], torch.from_numpy(np.stack(expected)).float(), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_blank_patches_change_nothing_about_a_page_and_empty_pages_are_no_trouble(channels):
    patches = noise(5, channels)

    def all_of(patches, *lengths):
        return torch.cat(statistics_of(patches, *lengths), 1)

    alone = torch.cat([all_of(part, len(part)) for part in patches.split([3, 2])])
    close(all_of(patches, 3, 2), alone)
    blank = torch.full((2, channels, P, P), 0.4)
    close(all_of(torch.cat([patches[:3], blank, patches[3:]]), 5, 2), alone, 1e-5)
    with_empty = all_of(patches, 3, 0, 2)
    close(with_empty[[0, 2]], alone)
    assert with_empty[1].isfinite().all()
