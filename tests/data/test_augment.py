"""Changes to pages: what they do to ink, and what they never do to paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from docvit.data.augment import Augmentation, _extreme, augment, move_maps

STILL = dict.fromkeys(Augmentation().__dict__, 0.0)


class Upper:
    """Draws the upper limit, always."""

    def uniform(self, low, high):
        return high

    def random(self, count=None):
        return 0.5


def page(height=96, width=64):
    paper = np.full((height, width), 255, np.uint8)
    paper[height // 4 : height // 2, width // 4 : width // 2] = 0
    return paper


def changed(pages, *, random=None, **settings):
    return augment(pages, Augmentation(**STILL | settings), random or Upper())


def centre(ink):
    """Centre of mass (row, column) of (H, W), in pixels from the middle of the page."""
    rows, columns = (torch.arange(n) - (n - 1) / 2 for n in ink.shape)
    return float((ink.sum(1) * rows).sum() / ink.sum()), float((ink.sum(0) * columns).sum() / ink.sum())


def test_how_strongly_a_document_is_changed_is_drawn_too():
    class Weak(Upper):
        def uniform(self, low, high):
            return low if low == 0 else high  # no strength, but all the rest

    (result,) = changed([page()], random=Weak(), shift=0.1, scale=0.3, ink=1.0, contrast=0.5)
    assert torch.allclose(result[0], torch.from_numpy(page()) / 255, atol=1e-5)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (64, 64, 3)])
def test_without_changes_the_page_stays(shape):
    original = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (result,) = changed([original])
    expected = torch.from_numpy(np.atleast_3d(original)).permute(2, 0, 1) / 255
    torch.testing.assert_close(result, expected, atol=1e-4, rtol=0)


def test_white_stays_white_and_sizes_stay():
    papers = [np.full(shape, 255, np.uint8) for shape in ((64, 48), (48, 64), (32, 32, 3))]
    for seed in range(20):
        results = augment(papers, Augmentation(scan=0), np.random.default_rng(seed))
        assert [tuple(r.shape) for r in results] == [(1, 64, 48), (1, 48, 64), (3, 32, 32)]
        assert all(torch.equal(r, torch.ones_like(r)) for r in results)


def test_pixels_stay_numbers_between_black_and_white():
    noisy = [np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)]
    for seed in range(50):
        settings = Augmentation(rotate=0.5, shear=0.5, scale=1.0, shift=0.5, ink=1.0, contrast=1.0)
        (result,) = augment(noisy, settings, np.random.default_rng(seed))
        assert result.isfinite().all()
        assert 0 <= result.min() <= result.max() <= 1


def test_a_shift_moves_ink_by_its_share_of_the_page_alike_in_both_directions():
    (result,) = changed([page()], shift=0.1)
    (before, after) = (centre(1 - torch.from_numpy(page()) / 255), centre(1 - result[0]))
    moved = 0.1 + 0.03  # of the document, and a little more of the page
    assert after[0] - before[0] == pytest.approx(-moved * 96, abs=0.05)
    assert after[1] - before[1] == pytest.approx(-moved * 64, abs=0.05)


def test_a_scale_shrinks_ink_towards_the_middle():
    (result,) = changed([page()], scale=0.2)
    factor = math.exp(-(0.2 + 0.04))
    assert centre(1 - result[0])[0] == pytest.approx(centre(1 - torch.from_numpy(page()) / 255)[0] * factor, abs=0.2)
    assert float((1 - result).sum()) == pytest.approx(24 * 16 * factor**2, rel=0.03)


def test_a_rotation_turns_and_keeps_shapes_also_on_a_page_that_is_not_square():
    (result,) = changed([page(192, 64)], rotate=0.3)
    rows, columns = np.nonzero(page(192, 64) == 0)
    y, x = rows.mean() - 95.5, columns.mean() - 31.5
    # what the result shows at p is what the page had at p turned by the angle
    row, column = centre(1 - result[0])
    assert row == pytest.approx(y * math.cos(0.3) - x * math.sin(0.3), abs=0.3)
    assert column == pytest.approx(x * math.cos(0.3) + y * math.sin(0.3), abs=0.3)
    assert float((1 - result).sum()) == pytest.approx(48 * 16, rel=0.02)


@pytest.mark.parametrize(("seed_sign", "heavier"), [(1, True), (-1, False)])
def test_ink_weight_thickens_and_thins(seed_sign, heavier):
    class Draw(Upper):
        def uniform(self, low, high):
            return seed_sign * high if low < 0 else high

    (result,) = changed([page()], random=Draw(), ink=1.0)
    ink = float((1 - result).sum())
    if heavier:  # every stroke grows by a pixel on each side
        assert ink == pytest.approx(26 * 18, rel=1e-3)
    else:
        assert ink == pytest.approx(0.4 * 24 * 16 + 0.6 * 22 * 14, rel=1e-3)


def test_contrast_makes_ink_paler_and_nothing_else():
    (result,) = changed([page()], contrast=0.4)
    assert sorted({round(float(v), 3) for v in result.unique()}) == pytest.approx([0.4, 1.0], abs=2e-3)


def test_a_document_that_loses_its_colours_is_as_dark_as_before():
    coloured = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    (result,) = changed([coloured], grey=1.0)
    assert torch.equal(result[0], result[1])
    torch.testing.assert_close(result[0], torch.from_numpy(coloured / 255).mean(2).float(), atol=1e-4, rtol=0)


def test_pages_of_a_document_change_alike_but_not_quite():
    first, second = augment([page(), page()], Augmentation(), np.random.default_rng(0))
    (other,) = augment([page()], Augmentation(), np.random.default_rng(1))
    assert not torch.equal(first, second)
    assert (first - second).abs().mean() < (first - other).abs().mean()


def test_the_same_random_numbers_give_the_same_pages():
    one, two = (augment([page()], Augmentation(), np.random.default_rng(5))[0] for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize("shape", [(1, 3, 20, 31), (1, 1, 2, 2), (1, 1, 3, 5)])
def test_strokes_grow_to_the_maximum_of_their_neighbourhood(shape):
    ink = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.max_pool2d(ink, 3, 1, 1)
    assert torch.equal(_extreme(ink, torch.maximum), expected)
    assert torch.equal(_extreme(-ink, torch.minimum), -expected)


def test_maps_move_as_pages_do():
    """On a page without edges the map of the moved page is the moved map, but for rounding to 256 levels."""
    coarse = torch.rand(1, 3, 4, 3, generator=torch.Generator().manual_seed(1))
    smooth = F.interpolate(coarse, (1024, 768), mode="bicubic", align_corners=True)[0].clamp(0, 1)
    pages = [(page * 255).byte().permute(1, 2, 0).numpy() for page in (smooth, smooth.flip(2))]
    moving = Augmentation(rotate=0.2, shear=0.1, ink=0, contrast=0, grey=0, scan=0)

    def cells(page):
        return F.avg_pool2d(page, 16)[:, 16:-16, 12:-12]  # what has come in from outside is paper, or the edge

    for seed in range(3):
        moved = augment(pages, moving, np.random.default_rng(seed))
        maps = [F.avg_pool2d(torch.from_numpy(page).permute(2, 0, 1) / 255, 16) for page in pages]
        found = move_maps(maps, moving, np.random.default_rng(seed))
        for page, before, after in zip(moved, maps, found, strict=True):
            expected = cells(page)
            assert (after[:, 16:-16, 12:-12] - expected).abs().max() < 0.005
            assert (before[:, 16:-16, 12:-12] - expected).abs().max() > 0.02


def test_what_a_map_gets_from_outside_is_its_edge():
    maps = [torch.full((2, 8, 6), 5.0)]
    assert torch.allclose(move_maps(maps, Augmentation(), np.random.default_rng(0))[0], maps[0])
