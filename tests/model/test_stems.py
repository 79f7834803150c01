"""Stems: what they say of a patch depends on it alone, what they say of a page on its patches alone."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import close

from docvit.documents.patches import PatchSequence, pack
from docvit.model import ink
from docvit.model.config import STEMS, DocViTConfig
from docvit.model.docvit import DocViT, Features
from docvit.model.stems import ConvStem, InkStem, create_stem

P = 32


def trained(channels):
    torch.manual_seed(0)
    stem = InkStem(channels, P, 16)
    for _ in range(20):  # statistics of its own
        stem.embed(*batch_of(torch.randn(60, channels * P * P), 20, 30, 10))
    return stem.eval()


def batch_of(patches, *lengths):
    """Pages of so many patches, each page's in reading order from its top, and the lengths as a tensor."""
    counts, places = torch.tensor(lengths), torch.cat([torch.arange(n) for n in lengths])
    index = torch.arange(len(lengths))
    batch = PatchSequence(
        patches=patches,
        page=index.repeat_interleave(counts),
        row=places // 4,
        col=places % 4,
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
    stem, (batch, lengths) = create_stem(name, 1, P, 16).eval(), pages(4, 3)
    tokens, of_pages = stem.embed(batch, lengths)
    close(tokens, stem(batch.patches))
    assert tokens.shape == (7, 16)
    assert of_pages is None or of_pages.shape == (2, 16)


def statistics_of(patches):
    """The page's figures cell by cell, in float64: ink, its colour, edges at three scales, edges within their cell."""
    cells, kinds = [], 1 if patches.shape[1] == P * P else 2
    for patch in patches.reshape(len(patches), -1, P, P).double().numpy():
        found, ink, side = [], patch.mean(0), 16
        for _ in range(3):
            framed = np.pad(ink, 1, mode="edge")
            across, down = framed[1:-1, 2:] - framed[1:-1, :-2], framed[2:, 1:-1] - framed[:-2, 1:-1]
            angles = np.arange(8) * np.pi / 8
            along = np.abs(np.cos(angles)[:, None, None] * across + np.sin(angles)[:, None, None] * down)
            found.append(np.sqrt(along.reshape(8, P // 16, side, P // 16, side).mean((2, 4))))
            ink, side = ink.reshape(len(ink) // 2, 2, len(ink) // 2, 2).mean((1, 3)), side // 2
        within = [edges / (np.sqrt((edges**2).sum(0)) + 0.05) for edges in found]
        chroma = patch.max(0) - patch.min(0)
        density, colour = (x.reshape(P // 16, 16, P // 16, 16).mean((1, 3)) for x in (patch.mean(0), chroma))
        of_ink = [density, np.sqrt(colour)][:kinds]
        cells.append(np.concatenate([np.stack(of_ink), *found, *within]).reshape(kinds + 48, -1).T)
    inked = np.concatenate(cells)
    inked = inked[inked[:, kinds:].sum(1) > 0.02]
    return np.concatenate([inked.mean(0), inked.std(0), *texture_of(patches)])


def texture_of(patches, side=P):
    """How edges change from place to place, divided by their strength, and the autocorrelation of rows, in float64."""
    levels, changes, correlation, count = np.zeros((3, 1, 4)), np.zeros((3, 2, 4)), np.zeros(side), 0
    for patch in patches.reshape(len(patches), -1, side, side).double().mean(1).numpy():
        count += np.ptp(patch) > 1e-6  # with ink
        framed = np.pad(patch, 1, mode="edge")
        across, down = framed[1:-1, 2:] - framed[1:-1, :-2], framed[2:, 1:-1] - framed[:-2, 1:-1]
        for direction, along in enumerate((across, down, (across + down) / 2**0.5, (across - down) / 2**0.5)):
            strength = np.abs(along)
            for scale in range(3):
                half = len(strength) // 2
                strength = strength.reshape(half, 2, half, 2).mean((1, 3))
                levels[scale, 0, direction] += strength.mean()
                changes[scale, 0, direction] += np.abs(np.diff(strength, axis=1)).mean()
                changes[scale, 1, direction] += np.abs(np.diff(strength, axis=0)).mean()
        rows = np.abs(across).mean(1) - np.abs(across).mean()
        correlation += [rows[: side - lag] @ rows[lag:] for lag in range(side)]
    lags = correlation[1 : 3 * side // 4 + 1] / (correlation[0] + count * 2 * side * 3e-5)
    return (changes / count / (levels / count + 0.04)).ravel(), lags


def gathered(stem, patches, *lengths):
    """(texture, layout) of each page"""
    batch, counts = batch_of(patches, *lengths)
    found = ink.page_statistics(stem.measure(patches), batch, counts)
    return found[:, : -ink.LAYOUT], found[:, -ink.LAYOUT :]


@torch.no_grad()
@pytest.mark.parametrize("side", [16, 48])
def test_texture_in_patches_of_other_sizes(side):
    patches = torch.randn(4, 3 * side * side)
    expected = np.concatenate(texture_of(patches, side))
    found, layout = gathered(InkStem(3, side, 16), patches, 4)
    assert found.shape[1] + layout.shape[1] == ink.sizes(3, side)[1]
    close(found[0, -len(expected) :], torch.from_numpy(expected).float(), 1e-4)


def layout_of(page, side):
    """Where edges lie on a whole page (H, W), which differences within patches find, in float64."""
    height, width = page.shape
    on = np.zeros(page.shape, dtype=bool)
    for y in range(0, height, side):
        for x in range(0, width, side):
            framed = np.pad(page[y : y + side, x : x + side], 1, mode="edge")
            across, down = framed[1:-1, 2:] - framed[1:-1, :-2], framed[2:, 1:-1] - framed[:-2, 1:-1]
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


@torch.no_grad()
@pytest.mark.parametrize("drop_blank", [True, False])
def test_a_page_is_told_where_its_ink_lies(drop_blank):
    random, documents = np.random.default_rng(0), []
    for height, width in ((192, 128), (128, 192), (320, 64), (64, 64), (256, 192)):
        page = np.full((height, width), 255, dtype=np.uint8)
        for _ in range(6):  # grey blocks, some of them too pale to count
            y, x = int(random.integers(height - 8)), int(random.integers(width - 8))
            block = random.integers(1, 30, 2)
            page[y : y + block[0], x : x + block[1]] = random.choice([0, 120, 250])
        documents.append([page, np.full((height, width), 255, dtype=np.uint8)])  # and an empty one
    batch = pack(documents, 32, channels=1, mean=(0.9,), std=(0.25,), drop_blank=drop_blank)
    found = ink.page_statistics(InkStem(1, 32, 16).measure(batch.patches), batch, batch.page_bounds.diff())
    expected = [layout_of((page / 255 - 0.9) / 0.25, 32) for pages in documents for page in pages]
    close(found[:, -ink.LAYOUT :], torch.from_numpy(np.stack(expected)).float(), 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_a_page_is_told_mean_and_deviation_over_its_inked_cells(channels):
    stem, patches = trained(channels), pages(2, 3, channels=channels)[0].patches
    blank = patches[1].view(channels, P * P)  # but for a colour, which is no ink
    blank[:] = torch.tensor([0.7, 0.1, 0.1])[:channels, None]
    patches[3].view(channels, P, P)[:, :16] = 0.0  # two of its four cells are empty
    expected = np.stack([statistics_of(patches[:2]), statistics_of(patches[2:])])
    close(gathered(stem, patches, 2, 3)[0], torch.from_numpy(expected).float(), 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_blank_patches_change_nothing_about_a_page_and_empty_pages_are_no_trouble(channels):
    stem, patches = trained(channels), pages(3, 2, channels=channels)[0].patches

    def all_of(patches, *lengths):
        return torch.cat(gathered(stem, patches, *lengths), 1)

    alone = torch.cat([all_of(part, len(part)) for part in patches.split([3, 2])])
    close(all_of(patches, 3, 2), alone)
    blank = torch.full((2, channels * P * P), 0.4)
    close(all_of(torch.cat([patches[:3], blank, patches[3:]]), 5, 2), alone, 1e-5)
    with_empty = all_of(patches, 3, 0, 2)
    close(with_empty[[0, 2]], alone)
    assert with_empty[1].isfinite().all()


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


@pytest.mark.parametrize("pooling", ["mean+std", "mean+std+first"])
@torch.no_grad()
def test_mean_and_spread_of_page_tokens_and_the_first(pooling):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(embed_dim=8, depth=1, num_heads=2, num_classes=3, pooling=pooling))
    tokens, counts = torch.randn(5, 8), torch.tensor([3, 1, 1])
    features = Features(tokens, torch.tensor([0, 0, 0, 1, 2]), counts)
    pooled = model.forward_head(features, pre_logits=True)
    expected = torch.cat([tokens[:3].mean(0), tokens[:3].std(0, unbiased=False), tokens[0]])
    close(pooled[0], expected[: model.num_features])
    close(model.forward_head(features)[1:], model.forward_pages(features)[3:])  # documents of one page
    assert model.forward_head(features).shape == (3, 3)
    model.reset_classifier(4)
    assert model.forward_head(features).shape == (3, 4)


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
