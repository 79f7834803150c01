"""Traces of scanners, copiers and fax machines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from docvit.data.augment import Augmentation, augment
from docvit.data.scan_augment import Scanner, draw_scanner, scan

STILL = dict.fromkeys(("shift", "scale", "stretch", "rotate", "shear", "ink", "contrast", "grey"), 0.0)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def page(seed: int = 0, height: int = 96, width: int = 64) -> torch.Tensor:
    """Ink: white paper with some grey blocks."""
    ink = torch.zeros(1, height, width)
    for y, x in random(seed).integers(8, 56, (6, 2)):
        ink[:, y : y + 6, x : x + 4] = 0.4 + 0.1 * seed
    return ink.expand(3, -1, -1)


def one(scanner: Scanner, ink: torch.Tensor | None = None) -> torch.Tensor:
    return scan([page() if ink is None else ink], scanner, random())[0]


def test_a_scanner_without_traces_leaves_grey_pages_as_they_are():
    assert torch.equal(one(Scanner()), page())


def test_colours_become_grey():
    ink = page().clone()
    ink[0] += 0.3
    left = one(Scanner(), ink)
    assert torch.allclose(left, ink.mean(0, keepdim=True).expand_as(ink))


def test_one_bit_leaves_black_and_white_alone_and_divides_grey_at_the_threshold():
    ink = torch.linspace(0, 1, 101).expand(3, 1, 101)
    left = one(Scanner(bits=200.0, threshold=0.3), ink)[0, 0]
    assert left[0] == pytest.approx(0, abs=1e-6)
    assert left[-1] == pytest.approx(1, abs=1e-6)
    assert left[25] < 0.01
    assert left[35] > 0.99


def test_paper_fade_and_shadow_change_what_they_say():
    white = torch.zeros(3, 40, 60)
    assert torch.allclose(one(Scanner(paper=0.1), white), torch.full_like(white, 0.1))
    assert one(Scanner(fade=0.5)).max() == pytest.approx(0.5 * page().max().item())
    shadowed = one(Scanner(shadow=(0.2, 0.0)), white)[0]
    assert torch.allclose(shadowed[0], torch.linspace(0, 0.2, 60))
    assert torch.equal(shadowed[0], shadowed[-1])
    assert torch.allclose(one(Scanner(shadow=(0.0, -0.2)), white)[0][:, 0], torch.linspace(0.2, 0, 40))


def test_blur_keeps_the_ink_and_spreads_it():
    blurred = one(Scanner(blur=1.0))
    assert blurred.mean() == pytest.approx(page().mean().item(), rel=0.02)
    assert blurred.max() < page().max() + 1e-6
    assert (blurred > 0).sum() > (page() > 0).sum()


def test_noise_has_the_deviation_asked_for_and_differs_between_pages():
    grey = torch.full((3, 64, 64), 0.5)
    first, second = scan([grey, grey], Scanner(noise=0.05), random())
    assert first.std() == pytest.approx(0.05, rel=0.1)
    assert not torch.equal(first, second)


def test_borders_and_holes_are_dark_where_the_scanner_sees_past_the_sheet():
    left = one(Scanner(border=(0.1, 0.0, 0.0, 0.05)), torch.zeros(3, 100, 80))[0]
    assert (left[:, :8] == 0.9).all()
    assert (left[95:] == 0.9).all()
    assert (left[:95, 8:] == 0).all()
    holes = one(Scanner(holes=2), torch.zeros(3, 240, 180))[0]
    rows = (holes > 0).any(1)
    assert (rows[1:] & ~rows[:-1]).sum() == 2
    assert (holes[:, 30:] == 0).all()


def test_the_next_page_shines_through_mirrored():
    pages = [torch.zeros(3, 96, 64), page(1)]
    shining = scan(pages, Scanner(bleed=0.1), random())[0]
    assert torch.allclose(shining, 0.1 * page(1).flip(2))
    other_size = [torch.zeros(3, 96, 64), page(1, 96, 96)]
    assert (scan(other_size, Scanner(bleed=0.1), random())[0] == 0).all()


def test_compression_is_lossy_at_low_quality():
    fine, coarse = one(Scanner(jpeg=95)), one(Scanner(jpeg=10))
    assert (fine - page()).abs().mean() < (coarse - page()).abs().mean()


def test_scanners_have_from_no_to_many_traces():
    counts = []
    for seed in range(300):
        scanner = draw_scanner(random(seed))
        assert scanner == draw_scanner(random(seed))
        differing = [v != getattr(Scanner(), name) for name, v in vars(scanner).items() if name != "threshold"]
        counts.append(sum(differing))
        for left in scan([page(), page(1)], scanner, random(seed)):
            assert left.shape == (3, 96, 64)
            assert 0 <= left.min() <= left.max() <= 1
    assert min(counts) <= 1
    assert max(counts) >= 7


def test_augmentation_scans_the_share_of_documents_that_it_says():
    pages = [np.full((64, 48, 3), (250, 128, 128), np.uint8)]  # red, which no scan leaves
    coloured = {
        share: sum(
            bool((augment(pages, Augmentation(**STILL, scan=share), random(seed))[0].std(0) > 0.01).any())
            for seed in range(200)
        )
        for share in (0.0, 0.5, 1.0)
    }
    assert coloured[0.0] == 200
    assert coloured[1.0] == 0
    assert 75 < coloured[0.5] < 125
