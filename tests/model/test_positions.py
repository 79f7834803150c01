"""Addresses: tables exact where they reach, stretched end to end where they do not; formulas as they are written."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import model_of, number_of, paper_sinusoid, rope_angles

from docvit.documents.pages import PageStack
from docvit.documents.patches import pack
from docvit.model.config import DocViTConfig
from docvit.model.positions import (
    SCHEMES,
    Continued,
    PageIndependent,
    Positions,
    Rotary,
    Sinusoid,
    Sinusoid2DPage,
    SpatialPage,
    first_numbers,
    interpolate_1d,
    patch_numbers,
    sinusoid,
    stretch,
)
from docvit.model.tokens import Rotation, rotate
from docvit.model.variants import create_model

P, D = 2, 8


def batch_of(*documents):
    """A batch of documents given as lists of grids (rows, cols); every patch is kept."""
    return pack(
        [[torch.zeros(1, rows * P, cols * P) for rows, cols in document] for document in documents],
        P,
        channels=1,
        drop_blank=False,
    )


MIXED = [(5, 7), (4, 3), (2, 2), (3, 4)], [(2, 2)], [(1, 6), (6, 1)]


def config(width=D, heads=1, **settings):
    return DocViTConfig(embed_dim=width, num_heads=heads, **{"grid": (4, 3), "page_embeddings": 6} | settings)


def scheme(kind, **settings):
    torch.manual_seed(0)
    positions = kind(config(**settings))
    for parameter in positions.parameters():
        torch.nn.init.normal_(parameter)
    return positions


# The arithmetic of addresses


@pytest.mark.parametrize("length", [1, 2, 5, 14, 49, 65, 200, 5000])
@pytest.mark.parametrize("table", [1, 2, 14, 64])
def test_stretch_puts_ends_on_ends_and_keeps_the_order(length, table):
    indices = stretch(torch.arange(length), torch.tensor(length), table)
    assert indices[0] == 0
    assert indices[-1] == (table - 1 if length > 1 else 0)
    assert (indices.diff() >= 0).all()
    if length == table:
        assert indices.tolist() == list(range(length))


def test_interpolation_in_one_dimension_is_torchs():
    table = torch.randn(6, D)
    for length in (6, 13, 4, 200):
        indices = stretch(torch.arange(length), torch.tensor(length), 6)
        expected = F.interpolate(table.T[None], length, mode="linear", align_corners=True)[0].T
        torch.testing.assert_close(interpolate_1d(table, indices), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [(4, 3), (7, 9), (3, 8), (2, 2), (14, 5)])
def test_interpolation_in_two_dimensions_is_torchs(grid):
    positions = scheme(PageIndependent)
    expected = F.interpolate(positions.spatial.permute(2, 0, 1)[None], grid, mode="bilinear", align_corners=True)
    torch.testing.assert_close(
        positions.patches(batch_of([grid])), expected[0].permute(1, 2, 0).flatten(0, 1), atol=1e-5, rtol=1e-5
    )


def test_a_table_of_a_single_cell_serves_every_place():
    positions = scheme(SpatialPage, grid=(1, 1), page_embeddings=1)
    expected = positions.spatial[0, 0] + positions.page[0]
    torch.testing.assert_close(positions.patches(batch_of([(3, 2), (1, 1)])), expected.expand(7, D))


# Schemes


@pytest.mark.parametrize("kind", [PageIndependent, SpatialPage])
def test_a_grid_as_large_as_the_table_reads_it_exactly(kind):
    positions = scheme(kind)
    spatial = positions.spatial.flatten(0, 1)
    expected = spatial if positions.pages(batch_of([(4, 3)])) is None else spatial + positions.page[0]
    assert torch.equal(positions.patches(batch_of([(4, 3)])), expected)


@pytest.mark.parametrize("grid", [(2, 2), (9, 11), (49, 35), (5, 2)])
def test_corners_of_a_page_lie_on_corners_of_the_table(grid):
    positions, (rows, cols) = scheme(PageIndependent), grid
    found = positions.patches(batch_of([grid])).unflatten(0, grid)
    for row, index in ((0, 0), (rows - 1, 3)):
        for col, across in ((0, 0), (cols - 1, 2)):
            assert torch.equal(found[row, col], positions.spatial[index, across])


def parts(positions, batch):
    """What a scheme gives, of patches and of pages; zeros where it gives nothing."""
    patches, pages, angles = positions.patches(batch), positions.pages(batch), positions.angles(batch)
    none = torch.zeros(batch.num_patches, 1), torch.zeros(batch.num_pages, 1)
    added = [given if given is not None else zeros for given, zeros in zip((patches, pages), none, strict=True)]
    return [torch.cat(pair, 1) for pair in zip(added, angles or none, strict=True)]


@pytest.mark.parametrize("kind", SCHEMES.values(), ids=SCHEMES)
def test_patches_left_out_change_nothing_for_the_others(kind):
    positions, batch = scheme(kind, page_embeddings=2), batch_of(*MIXED)
    keep = torch.rand(batch.num_patches, generator=torch.Generator().manual_seed(0)) < 0.4
    keep[35:47] = False  # a whole page
    (some, pages), (everything, all_pages) = parts(positions, batch.select(keep)), parts(positions, batch)
    assert torch.equal(some, everything[keep])
    assert torch.equal(pages, all_pages)


@pytest.mark.parametrize("kind", SCHEMES.values(), ids=SCHEMES)
def test_documents_of_a_batch_are_numbered_each_for_itself(kind):
    positions = scheme(kind, page_embeddings=2)
    together, alone = parts(positions, batch_of(*MIXED)), [parts(positions, batch_of(one)) for one in MIXED]
    for i in range(2):
        assert torch.equal(together[i], torch.cat([one[i] for one in alone]))


@pytest.mark.parametrize("kind", [PageIndependent, SpatialPage, Continued])
def test_gradients_are_added_up_in_a_fixed_order(kind):
    positions, batch = scheme(kind), batch_of(*[[(9, 11)] * 8] * 9)
    target, threads = torch.randn(batch.num_patches, D), torch.get_num_threads()
    torch.set_num_threads(4)
    found = [torch.autograd.grad((positions.patches(batch) * target).sum(), positions.parameters()) for _ in range(5)]
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for again in found[1:] for a, b in zip(found[0], again, strict=True))


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
    positions = scheme(SpatialPage, page_embeddings=64)
    pages = positions.pages(batch_of([(1, 1)] * num_pages, [(1, 1)] * 3))
    assert torch.equal(pages[0], positions.page[0])
    assert torch.equal(pages[num_pages - 1], positions.page[-1])
    assert torch.equal(pages[num_pages:], positions.page[:3])  # the short document beside it keeps its rows
    expected = F.interpolate(positions.page.T[None], num_pages, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(pages[:num_pages], expected, atol=1e-4, rtol=1e-4)


def test_pages_read_here_and_there_stand_where_the_whole_document_puts_them():
    positions = scheme(SpatialPage, page_embeddings=64)
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
    positions = scheme(SpatialPage, page_embeddings=600).bfloat16()
    assert torch.equal(positions.pages(batch_of([(1, 1)] * 600)), positions.page)
    numbers = scheme(Continued, page_embeddings=600).bfloat16()
    assert torch.equal(numbers.patches(batch_of([(4, 3)] * 600)), numbers.number)


def test_the_base_scheme_is_no_position_at_all():
    positions, batch = Positions(config()), batch_of([(2, 2)])
    assert positions.patches(batch) is positions.pages(batch) is positions.angles(batch) is None


# Continued numbering


def test_the_second_page_of_two_by_two_goes_on_with_5_6_7_8():
    batch = batch_of([(2, 2)] * 3)
    first, totals = first_numbers(batch)
    assert (patch_numbers(batch, first) + 1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert (first + 1).tolist() == [1, 5, 9]
    assert totals.tolist() == [12] * 3


def test_every_cell_counts_on_every_page_of_every_document():
    batch = batch_of(*MIXED)
    first, totals = first_numbers(batch)
    expected = [
        number_of(grids, page, row, col)
        for grids in MIXED
        for page, (rows, cols) in enumerate(grids)
        for row, col in product(range(rows), range(cols))
    ]
    assert patch_numbers(batch, first).tolist() == expected
    assert totals.tolist() == [63] * 4 + [4] + [12] * 2


def test_pages_that_were_not_read_count_as_many_cells_as_the_one_before_them():
    def pages(*grids):
        return [np.zeros((rows * P, cols * P), np.uint8) for rows, cols in grids]

    alike = PageStack("a.pdf", pages(*[(3, 2)] * 3), [0, 120, 199], 200)
    mixed = PageStack("b.pdf", pages((3, 2), (2, 2), (1, 5)), [1, 4, 5], 9)  # 6, 6, 6, 6, 4 and 5 cells
    first, totals = first_numbers(pack([alike, mixed], P, channels=1))
    assert first.tolist() == [0, 720, 1194, 6, 24, 28]
    assert totals.tolist() == [1200] * 3 + [33] * 3


def test_continued_numbers_within_the_table_take_exactly_its_rows():
    positions = scheme(Continued)  # 4 * 3 * 6 = 72 numbers
    assert torch.equal(positions.patches(batch_of([(4, 3)] * 6)), positions.number)
    batch = batch_of([(4, 3)] * 2, [(2, 2)] * 2)
    assert torch.equal(positions.patches(batch)[24:], positions.number[:8])
    assert torch.equal(positions.pages(batch), positions.number[[0, 12, 0, 4]])


@pytest.mark.parametrize(
    "grids", [[(4, 3)] * 7, [(5, 7), (4, 3), (9, 8)], [(30, 20)], [(14, 14)] * 65], ids=["pages", "mixed", "page", "65"]
)
def test_more_numbers_than_the_table_has_stretch_from_corner_to_corner(grids):
    positions, batch = scheme(Continued), batch_of(grids, [(2, 2)])
    found = positions.patches(batch)
    assert torch.equal(found[[0, -5]], positions.number[[0, -1]])
    assert torch.equal(found[-4:], positions.number[:4])  # the short document beside it keeps its rows
    expected = F.interpolate(positions.number.T[None], len(found) - 4, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(found[:-4], expected, atol=1e-3, rtol=1e-3)
    first = first_numbers(batch)[0][: len(grids)]
    assert torch.equal(positions.pages(batch)[: len(grids)], found[first])


def test_the_corners_of_a_long_table_are_met_exactly():
    positions = scheme(Continued, grid=(14, 14), page_embeddings=64)
    found = positions.patches(batch_of([(49, 50)] * 10))
    assert torch.equal(found[[0, -1]], positions.number[[0, -1]])


# Formulas


@pytest.mark.parametrize("dim", [2, 8, 64, 100])
def test_the_sinusoid_is_the_papers(dim):
    indices = [0, 1, 2, 7, 100, 12_345, 1_000_000]
    expected = torch.stack([paper_sinusoid(index, dim) for index in indices])
    torch.testing.assert_close(sinusoid(torch.tensor(indices), dim), expected, atol=1e-6, rtol=0)


def test_sincos_is_the_papers_sinusoid_of_the_continued_number():
    positions = scheme(Sinusoid)
    patches, pages = positions.patches(batch_of(*MIXED)), positions.pages(batch_of(*MIXED))
    numbers = [*range(63), *range(4), *range(12)]
    torch.testing.assert_close(patches, torch.stack([paper_sinusoid(n, D) for n in numbers]), atol=1e-6, rtol=0)
    torch.testing.assert_close(pages, patches[[0, 35, 47, 51, 63, 67, 73]], atol=0, rtol=0)


def test_sincos2d_is_half_row_half_column_and_the_page_on_top():
    positions, batch = scheme(Sinusoid2DPage), batch_of(*MIXED)
    pages = torch.stack([paper_sinusoid(page, D) for grids in MIXED for page in range(len(grids))])
    torch.testing.assert_close(positions.pages(batch), pages, atol=1e-6, rtol=0)
    halves = [[paper_sinusoid(i, D // 2) for i in index.tolist()] for index in (batch.row, batch.col)]
    spatial = torch.cat([torch.stack(half) for half in halves], 1)
    torch.testing.assert_close(positions.patches(batch), spatial + pages[batch.page_of_patch], atol=1e-6, rtol=0)


# Rotation


def scores(positions, batch):
    """Attention scores (T, T) of patches that all hold the same query and the same key."""
    query, key = torch.randn(2, 1, 1, 2 * sum(positions.pairs), generator=torch.Generator().manual_seed(0))
    angles, _ = positions.angles(batch)
    turned = [rotate(x.expand(len(angles), 1, -1), Rotation(angles.cos(), angles.sin()))[:, 0] for x in (query, key)]
    return turned[0] @ turned[1].T


@pytest.mark.parametrize("width", [6, 8, 10, 32, 64])
def test_rotary_attention_depends_on_differences_of_page_row_and_column_alone(width):
    positions = Rotary(config(width))
    batch = batch_of([(3, 4), (2, 5), (4, 4)])
    before = scores(positions, batch)
    together = replace(batch, page=batch.page + 7, row=batch.row + 20, col=batch.col + 31)
    torch.testing.assert_close(scores(positions, together), before, atol=1e-4, rtol=1e-4)
    for name in ("page", "row", "col"):
        moved = replace(batch, **{name: getattr(batch, name) + (torch.arange(batch.num_patches) == 5)})
        assert ((scores(positions, moved) - before).abs()[5, :5] > 1e-4).all()
    address = torch.stack([batch.page, batch.row, batch.col], 1)
    _, group = (address[:, None] - address[None]).flatten(0, 1).unique(dim=0, return_inverse=True)
    same = torch.zeros(int(group.max()) + 1).scatter(0, group, before.flatten())[group]  # one pair's of each difference
    torch.testing.assert_close(before.flatten(), same, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [6, 8, 32, 64])
def test_rotary_angles_are_the_formulas(width):
    positions, batch = Rotary(config(width)), batch_of([(3, 4)] * 70)
    patches, pages = positions.angles(batch)
    assert patches.shape == (batch.num_patches, width // 2)
    addresses = zip(batch.page.tolist(), batch.row.tolist(), batch.col.tolist(), strict=True)
    torch.testing.assert_close(patches, torch.stack([rope_angles(width, a) for a in addresses]))
    torch.testing.assert_close(pages, torch.stack([rope_angles(width, (page, 0, 0)) for page in range(70)]))


@torch.no_grad()
def test_only_rotary_attention_leaves_it_open_where_a_document_begins():
    for name in SCHEMES:
        model = model_of(positions=name)
        batch = model.pack([[torch.randn(3, 12, 16) for _ in range(3)]])
        later = replace(batch, page=batch.page + 5, page_index=batch.page_index + 5)
        difference = (model(later) - model(batch)).abs().max()
        assert difference < 1e-4 if name in ("rope", "page-independent") else difference > 1e-3


# The registry


@pytest.mark.parametrize("name", SCHEMES)
def test_schemes_by_name(name):
    assert type(model_of(positions=name).positions) is SCHEMES[name]


@pytest.mark.parametrize(
    ("name", "dim", "heads", "says"),
    [
        ("sincos", 7, 1, "'sincos' need an even width, not 7"),
        ("sincos2d+page", 6, 1, "multiple of 4, not 6"),
        ("rope", 8, 2, "6 or more, not 4"),
        ("rope", 9, 1, "even width of 6 or more, not 9"),
    ],
)
def test_widths_that_a_scheme_cannot_share_out(name, dim, heads, says):
    with pytest.raises(ValueError, match=says):
        create_model("docvit_tiny_patch16", positions=name, embed_dim=dim, num_heads=heads)
