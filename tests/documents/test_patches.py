"""Pages become patches: every pixel is where its address says, and only blank patches are left out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from docvit.documents.images import fit_image
from docvit.documents.pages import PageStack, open_document, read_document
from docvit.documents.patches import BLANK_RANGE, pack
from docvit.documents.rendering import Rendering

PER_PATCH = ("patches", "page", "row", "col")


def noise(height, width, channels=3, seed=0):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def normalised(page, mean=(0.5,), std=(0.5,)):
    """The float tensor (C, H, W) that `pack` makes of an array, written the plain way."""
    pixels = torch.from_numpy(np.atleast_3d(page).transpose(2, 0, 1).copy()).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def reassembled(batch, page, patch_size, channels):
    """Page number `page` of the batch, patch by patch put back to where its address says; NaN where none is."""
    rows, cols = batch.grids[page].tolist()
    canvas = torch.full((channels, rows * patch_size, cols * patch_size), float("nan"))
    for t in range(batch.page_bounds[page], batch.page_bounds[page + 1]):
        y, x = batch.row[t] * patch_size, batch.col[t] * patch_size
        canvas[:, y : y + patch_size, x : x + patch_size] = batch.patches[t].view(channels, patch_size, patch_size)
    return canvas


def spotted(rows, cols, spots, patch_size=4):
    """A white page with one black pixel in each of the named cells."""
    page = np.full((rows * patch_size, cols * patch_size), 255, np.uint8)
    for row, col in spots:
        page[row * patch_size + 1, col * patch_size + 2] = 0
    return page


# Pixels and addresses


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_is_where_its_address_says(channels):
    pages = [noise(8, 12, channels, 0), noise(20, 4, channels, 1), noise(4, 4, channels, 2)]
    batch = pack([pages[:2], pages[2:]], 4, channels=channels, drop_blank=False)
    assert batch.patches.shape == (6 + 5 + 1, channels * 16)
    for i, page in enumerate(pages):
        torch.testing.assert_close(reassembled(batch, i, 4, channels), normalised(page))


def test_the_pixels_of_a_patch_are_ordered_as_timms_patch_embedding_wants_them():
    embed = timm.layers.PatchEmbed(img_size=(8, 12), patch_size=4, embed_dim=10)
    page = torch.randn(3, 8, 12)
    tokens = pack([[page]], 4, drop_blank=False).patches @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(tokens, embed(page[None])[0], atol=1e-5, rtol=1e-5)


def test_addresses_and_boundaries():
    batch = pack(
        [[torch.zeros(1, 4, 6), torch.zeros(1, 2, 2)], [torch.zeros(1, 2, 4)]], 2, channels=1, drop_blank=False
    )
    assert batch.page.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert batch.row.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert batch.col.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1]
    assert batch.grids.tolist() == [[2, 3], [1, 1], [1, 2]]
    assert batch.page_index.tolist() == [0, 1, 0]
    assert batch.page_bounds.tolist() == [0, 6, 7, 9]
    assert batch.document_bounds.tolist() == [0, 2, 3]
    assert batch.page_of_patch.tolist() == [0, 0, 0, 0, 0, 0, 1, 2, 2]
    assert batch.document_of_page.tolist() == [0, 0, 1]
    assert batch.document_lengths.tolist() == [2, 2, 1]
    assert (len(batch), batch.num_documents, batch.num_pages, batch.num_patches) == (2, 2, 3, 9)


def test_a_batch_is_its_documents_one_after_the_other():
    documents = [[noise(8, 8, 3, 0)], [noise(4, 12, 3, 1), noise(8, 4, 3, 2)], [noise(4, 4, 3, 3)]]
    together, alone = pack(documents, 4), [pack([document], 4) for document in documents]
    for name in (*PER_PATCH, "grids", "page_index"):
        assert torch.equal(getattr(together, name), torch.cat([getattr(batch, name) for batch in alone]))


def test_mean_and_std_are_for_each_channel():
    page, mean, std = noise(8, 8), (0.1, 0.5, 0.7), (0.2, 0.3, 0.4)
    batch = pack([[page]], 8, mean=mean, std=std)
    torch.testing.assert_close(batch.patches.view(3, 8, 8), normalised(page, mean, std))


# Blank patches


@pytest.mark.parametrize("as_tensor", [False, True], ids=["array", "tensor"])
def test_eight_grey_levels_say_nothing_and_nine_do(as_tensor):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for span, kept in ((0, 0), (BLANK_RANGE, 0), (BLANK_RANGE + 1, 256 - BLANK_RANGE - 1)):
        page = np.zeros((4, 4 * (256 - span), 3), np.uint8)
        page += np.repeat(np.arange(256 - span), 4).astype(np.uint8)[None, :, None]  # one patch for every ground
        page[2, 1::4, 1] += span  # in one channel alone: a faint colour is ink too
        document = [normalised(page, mean, std) if as_tensor else page]
        assert pack([document], 4, mean=mean, std=std).num_patches == kept


def test_patches_are_blank_on_any_ground_and_even_between_channels():
    page = np.full((4, 12, 3), 255, np.uint8)
    page[:, 4:8] = (200, 0, 40)  # one colour all over
    page[0, 8] = 0
    assert pack([[page]], 4).col.tolist() == [2]


def test_blank_patches_are_left_out_and_the_others_keep_their_addresses():
    page = spotted(3, 5, [(0, 0), (1, 3), (2, 1), (2, 4)])
    batch, whole = pack([[page]], 4, channels=1), pack([[page]], 4, channels=1, drop_blank=False)
    assert list(zip(batch.row.tolist(), batch.col.tolist(), strict=True)) == [(0, 0), (1, 3), (2, 1), (2, 4)]
    assert batch.grids.tolist() == whole.grids.tolist() == [[3, 5]]
    assert whole.num_patches == 15
    assert torch.equal(batch.patches, whole.patches[[0, 8, 11, 14]])


def test_an_entirely_blank_page_stays_as_a_page_without_patches():
    blank, ink = spotted(2, 2, []), spotted(2, 2, [(1, 1)])
    batch = pack([[blank, ink, blank], [blank]], 4, channels=1)
    assert batch.page_bounds.tolist() == [0, 0, 1, 1, 1]
    assert batch.document_bounds.tolist() == [0, 3, 4]
    assert batch.page.tolist() == [1]
    assert batch.page_index.tolist() == [0, 1, 2, 0]
    assert pack([[blank]], 4, channels=1).patches.shape == (0, 16)


def test_select_keeps_pages_and_documents_and_the_patches_it_is_given():
    pages = [spotted(3, 3, [(0, 1), (2, 2)]), spotted(2, 4, []), spotted(2, 2, [(0, 0)])]
    whole = pack([pages[:2], pages[2:]], 4, channels=1, drop_blank=False)
    keep = whole.patches.amin(1) < whole.patches.amax(1)
    chosen, expected = whole.select(keep), pack([pages[:2], pages[2:]], 4, channels=1)
    for field in dataclasses.fields(expected):
        assert torch.equal(getattr(chosen, field.name), getattr(expected, field.name)), field.name
    assert whole.select(torch.zeros_like(keep)).page_bounds.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("keep", [torch.ones(3, dtype=torch.bool), torch.ones(4), torch.ones(4, 1, dtype=torch.bool)])
def test_select_refuses_what_is_no_mask(keep):
    with pytest.raises(ValueError, match="boolean vector of length 4"):
        pack([[noise(4, 4)]], 2, drop_blank=False).select(keep)


# Every kind of page and document


def test_an_array_a_tensor_an_image_and_a_path_give_the_same_patches(tmp_path):
    page = noise(8, 16)
    Image.fromarray(page).save(tmp_path / "page.png")
    kinds = [page, normalised(page), Image.fromarray(page), tmp_path / "page.png", str(tmp_path / "page.png")]
    for kind in kinds:
        batch = pack([[kind]], 4, size=16)
        torch.testing.assert_close(reassembled(batch, 0, 4, 3), normalised(page))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_brought_to_size_in_whole_patches(channels):
    image = Image.fromarray(noise(300, 200))
    batch = pack([[image]], 16, size=96, channels=channels, drop_blank=False)
    assert batch.grids.tolist() == [[6, 4]]
    expected = np.array(fit_image(image, Rendering(size=96, multiple=16, mode="L" if channels == 1 else "RGB")))
    torch.testing.assert_close(reassembled(batch, 0, 16, channels), normalised(expected))


def test_arrays_and_tensors_are_taken_as_they_are():
    batch = pack([[noise(48, 64), torch.full((3, 16, 112), 7.0)]], 16, size=32, drop_blank=False)
    assert batch.grids.tolist() == [[3, 4], [1, 7]]
    assert (batch.patches[batch.page == 1] == 7).all()


def test_an_open_document_is_drawn_for_this_model_whatever_it_was_opened_for(make_pdf):
    path = make_pdf("a.pdf", [(612, 792), (792, 612)])
    with open_document(path, Rendering(size=500, multiple=1, mode="RGB", supersample=3)) as document:
        batch = pack([document], 16, size=96, channels=1)
    assert batch.grids.tolist() == [[6, 5], [5, 6]]  # landscape stays landscape
    stack = read_document(path, Rendering(size=96, multiple=16, mode="L", supersample=3))
    expected = pack([stack], 16, channels=1)
    assert torch.equal(batch.patches, expected.patches)
    assert 0 < batch.num_patches < 60


def test_a_page_stack_brings_its_own_page_numbers():
    stack = PageStack("a.pdf", [spotted(1, 2, [(0, 0), (0, 1)])] * 3, [0, 7, 99], 100)
    batch = pack([stack, [noise(4, 4, 1)]], 4, channels=1)
    assert batch.page_index.tolist() == [0, 7, 99, 0]
    assert batch.page.tolist() == [0, 0, 7, 7, 99, 99, 0]
    assert batch.document_lengths.tolist() == [100, 100, 100, 1]


def test_max_pages_spreads_evenly_and_keeps_page_numbers(make_pdf):
    pages = [noise(4, 4, 1, seed) for seed in range(9)]
    stack = PageStack("a.pdf", pages, list(range(10, 100, 10)), 100)
    batch = pack([pages, stack, pages[:2]], 4, channels=1, max_pages=3)
    assert batch.page_index.tolist() == [0, 4, 8, 10, 50, 90, 0, 1]
    assert torch.equal(batch.patches[:3], batch.patches[3:6])
    with open_document(make_pdf("a.pdf", [(100, 100)] * 5)) as document:
        assert pack([document], 16, size=32, max_pages=2).page_index.tolist() == [0, 4]


def test_documents_may_come_from_a_generator_and_be_any_sequence():
    batch = pack(((noise(4, 4, seed=i),) for i in range(3)), 4)
    assert batch.num_documents == 3


# What is refused


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([], "no documents"),
        ([[noise(4, 4)], []], "document 1 of the batch has no pages"),
        (["page.png"], "a document is a sequence of pages"),
        ([noise(4, 4)], "a document is a sequence of pages"),
        ([torch.zeros(3, 4, 4)], "a document is a sequence of pages"),
        ([Image.new("RGB", (4, 4))], "a document is a sequence of pages"),
        ([[torch.zeros(3, 4, 6)]], "4 x 6 are not multiples of the patch size 4"),
        ([[noise(5, 4)]], "5 x 4 are not multiples"),
        ([[torch.zeros(3, 0, 4)]], "0 x 4 are not multiples"),
        ([[torch.zeros(1, 4, 4)]], "float .3, H, W."),
        ([[torch.zeros(4, 4)]], "float .3, H, W."),
        ([[torch.zeros(3, 4, 4, dtype=torch.uint8)]], "torch.uint8"),
        ([[noise(4, 4).astype(np.float32)]], "float32"),
        ([[noise(4, 4, 1)]], "3 channels"),
        ([[noise(4, 4, 4)]], "3 channels"),
        ([[noise(4, 4, 1)[:, :, None]]], "3 channels"),
    ],
)
def test_what_cannot_be_packed_is_said(documents, says):
    with pytest.raises(ValueError, match=says):
        pack(documents, 4)


def test_a_file_of_several_pages_is_not_one_page(make_pdf):
    with pytest.raises(ValueError, match="open_document"):
        pack([[make_pdf("a.pdf", [(100, 100)] * 2)]], 16, size=32)


def test_an_array_for_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="1 channels"):
        pack([[noise(4, 4)]], 4, channels=1)


@pytest.mark.parametrize("setting", ["mean", "std"])
def test_normalisation_for_another_number_of_channels_is_refused(setting):
    with pytest.raises(ValueError, match=setting):
        pack([[noise(4, 4, 1)]], 4, channels=1, **{setting: (0.5, 0.5, 0.5)})


def test_max_pages_of_none_at_all_is_refused():
    with pytest.raises(ValueError, match="max_pages"):
        pack([[noise(4, 4)]], 4, max_pages=0)


# Devices


def test_to_moves_the_tensors_and_leaves_the_boundaries_on_the_cpu():
    batch = pack([[noise(4, 8)]], 4).to("meta")
    for field in dataclasses.fields(batch):
        expected = "cpu" if field.name.endswith("bounds") else "meta"
        assert getattr(batch, field.name).device.type == expected, field.name
    assert (batch.num_patches, batch.num_pages, len(batch)) == (2, 1, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_go_to_the_gpu():
    batch = pack([[noise(4, 8)], [noise(8, 8)]], 4)
    pinned = batch.pin_memory()
    assert pinned.patches.is_pinned()
    there = pinned.to("cuda", non_blocking=True)
    assert torch.equal(there.patches.cpu(), batch.patches)
    assert torch.equal(there.document_lengths.cpu(), batch.document_lengths)
