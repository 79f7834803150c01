"""Stems: a patch's token depends on that patch alone, a page's statistics on that page's patches alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import close

from docvit.documents.patches import PatchSequence, pack
from docvit.model.config import STEMS
from docvit.model.stems import STEM_TYPES, ConvStem, InkStem

P = 32


def trained(channels):
    torch.manual_seed(0)
    stem = InkStem(channels, P, 16)
    for _ in range(20):  # statistics of its own
        stem.embed(*batch_of(torch.randn(60, channels * P * P), 20, 30, 10))
    return stem.eval()


def batch_of(patches, *lengths):
    """Pages of so many patches, each page's in reading order from its top, and the lengths as a tensor."""
    counts, cells = torch.tensor(lengths), torch.cat([torch.arange(n) for n in lengths])
    index = torch.arange(len(lengths))
    batch = PatchSequence(
        patches=patches,
        page=index.repeat_interleave(counts),
        row=cells // 4,
        col=cells % 4,
        grids=torch.tensor([[8, 4]] * len(lengths)),
        page_index=index,
        page_bounds=F.pad(counts.cumsum(0), (1, 0)),
        document_bounds=torch.tensor([0, len(lengths)]),
    )
    return batch, counts


@pytest.fixture
def stem():
    return trained(1)


def pages(*lengths, channels=1):
    torch.manual_seed(1)
    return batch_of(torch.randn(sum(lengths), channels * P * P), *lengths)


@torch.no_grad()
@pytest.mark.parametrize("name", STEMS)
def test_a_token_is_the_same_with_and_without_its_page(name):
    stem, (batch, lengths) = STEM_TYPES[name](1, P, 16).eval(), pages(4, 3)
    tokens, of_pages = stem.embed(batch, lengths)
    close(tokens, stem(batch.patches))
    assert tokens.shape == (7, 16)
    assert of_pages is None or of_pages.shape == (2, 16)


@torch.no_grad()
def test_grey_pages_in_rgb_are_grey_pages():
    grey, colour = trained(1), trained(3)
    patches, cells = pages(2, 3)[0].patches, (P // 16) ** 2
    one, many = grey.measure(patches), colour.measure(patches.repeat(1, 3))
    assert (many.ink[:, 1] == 0).all()
    close(many.ink[:, :1], one.ink)
    for here, there in zip([*many.edges, *many[2:]], [*one.edges, *one[2:]], strict=True):
        close(here, there, 1e-4)
    same = [x for x in range(colour.norm.num_features) if x // cells != 1]
    close(colour.describe(patches.repeat(1, 3))[:, same], grey.describe(patches), 1e-4)


def test_pages_of_a_shape_never_seen_do_not_drown_everything(stem):
    white = np.full((96, 64), 255, dtype=np.uint8)
    torch.manual_seed(0)
    fresh = InkStem(1, P, 16)
    portrait = pack([[white, white]] * 4, P, channels=1)
    for _ in range(200):
        fresh.embed(portrait, portrait.page_bounds.diff())
    landscape = pack([[white.T]], P, channels=1)
    seen = []
    fresh.eval().project_pages = lambda statistics, batch: seen.append(statistics)
    fresh.embed(landscape, landscape.page_bounds.diff())
    assert seen[0].abs().max() == 10  # deviations


def test_ink_learns_from_single_patches_and_pages_too(stem):
    tokens, of_pages = stem.train().embed(*pages(1))
    (tokens.sum() + of_pages.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in stem.parameters())


def test_the_convolutional_stem_keeps_to_its_patch():
    torch.manual_seed(0)
    stem, patches = ConvStem(3, 8, 32), torch.randn(5, 3 * 64)
    tokens = stem(patches)
    assert tokens.shape == (5, 32)
    close(torch.cat([stem(patch[None]) for patch in patches]), tokens)
    close(stem(torch.cat([patches, patches[:2] + 5]))[:5], tokens)
    assert stem(patches[:0]).shape == (0, 32)
    with pytest.raises(ValueError, match="power of two"):
        ConvStem(3, 12, 32)


@torch.no_grad()
def test_the_ink_stem_keeps_to_its_patch_once_trained():
    torch.manual_seed(0)
    stem = InkStem(3, 16, 32)
    for _ in range(20):
        stem(torch.randn(50, 3 * 256))  # statistics of a batch: while it trains, patches do see one another
    stem.eval()
    patches = torch.randn(5, 3 * 256)
    close(torch.cat([stem(patch[None]) for patch in patches]), stem(patches))
    assert stem(patches[:0]).shape == (0, 32)


def test_a_single_page_and_another_batch_in_one_step_give_the_gradients_of_two(stem):
    stem.train()
    batches = [pages(1), pages(3, 2)]
    kept = {name: buffer.clone() for name, buffer in stem.named_buffers()}

    def gradients(*steps):
        stem.load_state_dict({**stem.state_dict(), **{k: v for k, v in kept.items() if k in stem.state_dict()}})
        stem.zero_grad()
        for step in steps:
            sum(part.square().sum() for page in step for part in stem.embed(*page)).backward()
        return [p.grad.clone() for p in stem.parameters()]

    together, apart = gradients(batches), gradients(batches[:1], batches[1:])
    for one, other in zip(together, apart, strict=True):
        close(one, other, 1e-3)
