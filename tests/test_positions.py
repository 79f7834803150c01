"""Addresses: exact where the tables reach, stretched end to end where they do not."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from docvit.pages import PageStack
from docvit.patches import pack
from docvit.positions import (
    POSITIONS,
    PageIndependent,
    Positions,
    SpatialPage,
    create_positions,
    interpolate_1d,
    stretch,
)

P, D = 2, 8


def batch_of(*documents):
    """A batch of documents given as lists of grids (rows, cols); every patch is kept."""
    return pack(
        [[torch.zeros(1, rows * P, cols * P) for rows, cols in document] for document in documents],
        P,
        channels=1,
        drop_blank=False,
    )


def scheme(kind, grid=(4, 3), max_pages=6):
    torch.manual_seed(0)
    positions = kind(D, grid=grid, max_pages=max_pages, head_dim=4)
    for parameter in positions.parameters():
        torch.nn.init.normal_(parameter)
    return positions


# The arithmetic of addresses


@pytest.mark.parametrize("length", [1, 2, 5, 14, 49, 65, 200, 5000])
@pytest.mark.parametrize("table", [1, 2, 14, 64])
def test_stretch_puts_ends_on_ends_and_keeps_the_order(length, table):
    places = stretch(torch.arange(length), torch.tensor(length), table)
    assert places[0] == 0
    assert places[-1] == (table - 1 if length > 1 else 0)
    assert (places.diff() >= 0).all()
    if length == table:
        assert places.tolist() == list(range(length))


def test_interpolation_in_one_dimension_is_torchs():
    table = torch.randn(6, D)
    for length in (6, 13, 4, 200):
        places = stretch(torch.arange(length), torch.tensor(length), 6)
        expected = F.interpolate(table.T[None], length, mode="linear", align_corners=True)[0].T
        torch.testing.assert_close(interpolate_1d(table, places), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [(4, 3), (7, 9), (3, 8), (2, 2), (14, 5)])
def test_interpolation_in_two_dimensions_is_torchs(grid):
    positions = scheme(PageIndependent)
    expected = F.interpolate(positions.spatial.permute(2, 0, 1)[None], grid, mode="bilinear", align_corners=True)
    torch.testing.assert_close(
        positions.patches(batch_of([grid])), expected[0].permute(1, 2, 0).flatten(0, 1), atol=1e-5, rtol=1e-5
    )


def test_a_table_of_a_single_cell_serves_every_place():
    positions = scheme(SpatialPage, grid=(1, 1), max_pages=1)
    expected = positions.spatial[0, 0] + positions.page[0]
    torch.testing.assert_close(positions.patches(batch_of([(3, 2), (1, 1)])), expected.expand(7, D))


# Schemes


@pytest.mark.parametrize("kind", POSITIONS.values(), ids=POSITIONS)
def test_a_grid_as_large_as_the_table_reads_it_exactly(kind):
    positions = scheme(kind)
    spatial = positions.spatial.flatten(0, 1)
    expected = spatial if positions.pages(batch_of([(4, 3)])) is None else spatial + positions.page[0]
    assert torch.equal(positions.patches(batch_of([(4, 3)])), expected)


@pytest.mark.parametrize("grid", [(2, 2), (9, 11), (49, 35), (5, 2)])
def test_corners_of_a_page_lie_on_corners_of_the_table(grid):
    positions, (rows, cols) = scheme(PageIndependent), grid
    found = positions.patches(batch_of([grid])).unflatten(0, grid)
    for row, place in ((0, 0), (rows - 1, 3)):
        for col, across in ((0, 0), (cols - 1, 2)):
            assert torch.equal(found[row, col], positions.spatial[place, across])


def test_patches_left_out_change_nothing_for_the_others():
    positions, batch = scheme(SpatialPage), batch_of([(5, 7), (4, 3)], [(2, 2)])
    keep = torch.rand(batch.num_patches, generator=torch.Generator().manual_seed(0)) < 0.4
    assert torch.equal(positions.patches(batch.select(keep)), positions.patches(batch)[keep])
    assert torch.equal(positions.pages(batch.select(keep)), positions.pages(batch))


def test_page_independent_numbers_every_page_alike():
    positions, batch = scheme(PageIndependent), batch_of([(5, 7)] * 3)
    first, second, third = positions.patches(batch).unflatten(0, (3, -1))
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert positions.pages(batch) is None
    assert positions.angles(batch) is None


def test_pages_within_the_table_take_exactly_its_rows():
    positions = scheme(SpatialPage)
    batch = batch_of([(1, 1)] * 6, [(1, 1)] * 2, [(1, 1)])
    assert torch.equal(positions.pages(batch), positions.page[[0, 1, 2, 3, 4, 5, 0, 1, 0]])
    assert torch.equal(positions.patches(batch), positions.pages(batch) + positions.spatial[0, 0])


@pytest.mark.parametrize("num_pages", [65, 200])
def test_documents_longer_than_the_table_stretch_from_end_to_end(num_pages):
    positions = scheme(SpatialPage, max_pages=64)
    pages = positions.pages(batch_of([(1, 1)] * num_pages, [(1, 1)] * 3))
    assert torch.equal(pages[0], positions.page[0])
    assert torch.equal(pages[num_pages - 1], positions.page[-1])
    assert torch.equal(pages[num_pages:], positions.page[:3])  # the short document beside it keeps its rows
    expected = F.interpolate(positions.page.T[None], num_pages, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(pages[:num_pages], expected, atol=1e-4, rtol=1e-4)


def test_pages_read_here_and_there_stand_where_the_whole_document_puts_them():
    positions = scheme(SpatialPage, max_pages=64)
    blank = torch.zeros(P, P, dtype=torch.uint8).numpy()
    some = PageStack("a.pdf", [blank] * 3, [0, 120, 199], 200)
    sparse = pack([some], P, channels=1)
    everything = batch_of([(1, 1)] * 200)
    assert torch.equal(positions.pages(sparse), positions.pages(everything)[[0, 120, 199]])


def test_gradients_reach_every_row_that_was_read():
    positions = scheme(SpatialPage)
    batch = batch_of([(4, 3)] * 4)
    (positions.patches(batch).sum() + positions.pages(batch).sum()).backward()
    assert torch.equal(positions.spatial.grad, torch.full((4, 3, D), 4.0))  # four pages read each cell once
    assert torch.equal(positions.page.grad[:4], torch.full((4, D), 13.0))  # twelve patches and a class token each
    assert (positions.page.grad[4:] == 0).all()


def test_a_table_in_half_precision_still_tells_late_pages_apart():
    positions = scheme(SpatialPage, max_pages=600).bfloat16()
    assert torch.equal(positions.pages(batch_of([(1, 1)] * 600)), positions.page)


def test_the_base_scheme_is_no_position_at_all():
    positions, batch = Positions(D, grid=(4, 3), max_pages=6, head_dim=4), batch_of([(2, 2)])
    assert positions.patches(batch) is positions.pages(batch) is positions.angles(batch) is None


@pytest.mark.parametrize("name", POSITIONS)
def test_schemes_by_name(name):
    assert type(create_positions(name, D, grid=(4, 3), max_pages=6, head_dim=4)) is POSITIONS[name]


def test_an_unknown_scheme_is_told_what_there_is():
    with pytest.raises(ValueError, match="'sideways'") as raised:
        create_positions("sideways", D, grid=(4, 3), max_pages=6, head_dim=4)
    assert all(name in str(raised.value) for name in POSITIONS)
