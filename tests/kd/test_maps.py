"""Maps as targets: each patch its own address, whatever moves the page; computed once, and computed the same."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, ENCRYPTED, TINY, classed_pdf, pdf_bytes
from kd_onnx import write_network
from safetensors.torch import load_file

from docvit.data.augment import Augmentation
from docvit.data.labels import DataError, LabelledDocuments, read_labelled
from docvit.documents.cache import PageCache
from docvit.documents.pages import open_document
from docvit.model.config import DocViTConfig
from docvit.training.distributed import Process
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from kd.documents.maps import pool_map, prepare_maps
from kd.documents.onnx_network import OnnxNetwork
from kd.documents.paired import paired_batches
from kd.student import map_state

CONFIG = DocViTConfig(**TINY | {"page_size": 128}, num_classes=3, classes=CLASSES)  # 8 x 6 patches
STILL = Augmentation(*[0.0] * 9)
RECIPE = Recipe(
    budget=60, max_pages=2, mix_pages=0.0, patch_dropout=0.3, augmentation=STILL, train=TrainSettings(seed=3)
)
PROCESS = Process(torch.device("cpu"))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return OnnxNetwork(f"{write_network(tmp_path_factory.mktemp('networks') / 'tiny.onnx', (256, 192))}:brightness")


def rendered(paths, page_cache, config=CONFIG):
    return PageCache(page_cache, config.rendering, words=True).prepare(list(paths), workers=0)[0]


def prepared(network, paths, page_cache, folder, config=CONFIG):
    files = rendered(paths, page_cache, config)
    return prepare_maps(network, files, config.rendering, PROCESS, cache=folder, workers=0)


def batch_of(data, network, page_cache, folder, recipe=RECIPE, **options):
    """All documents in one batch, and their maps."""
    files = rendered(data.paths, page_cache)
    shutil.copytree(page_cache, folder, dirs_exist_ok=True)
    batches, _ = paired_batches(
        data,
        files,
        CONFIG,
        [],
        replace(recipe, budget=10**6),
        PROCESS,
        networks=[network],
        cache=folder,
        workers=0,
        **options,
    )
    return next(iter(batches))


def raw(values, moments):
    """Targets before they were standardised."""
    return values * moments.std + moments.mean


@pytest.mark.parametrize("grid", [(3, 2), (7, 5), (1, 1), (12, 20), (6, 4)])
def test_pooling_is_the_mean_over_the_share_of_the_page_under_a_cell(grid):
    features = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0))
    fine = features.repeat_interleave(7 * 20, 1).repeat_interleave(5 * 20, 2)  # a multiple of every grid
    expected = fine.unflatten(2, (grid[1], -1)).unflatten(1, (grid[0], -1)).mean((2, 4))
    torch.testing.assert_close(pool_map(features, grid), expected, rtol=1e-4, atol=1e-5)


def test_a_page_dark_in_one_corner_lights_the_tokens_of_that_corner_alone(network, page_cache, tmp_path):
    hatched = b"\n".join(b"%d %d 12 198 re f" % (x, 594) for x in range(408, 612, 20))  # upper right
    marks = b"\n".join(b"%d %d 6 6 re f" % (x, y) for x in range(20, 600, 40) for y in range(20, 780, 40))
    (tmp_path / "corner.pdf").write_bytes(pdf_bytes(contents=[b"0 g\n" + hatched + b"\n" + marks]))
    data = LabelledDocuments((str(tmp_path / "corner.pdf"),), (-1,), ())
    batch = batch_of(data, network, page_cache, tmp_path / "cache", replace(RECIPE, patch_dropout=0.0))
    sequence = batch.sequence
    assert sequence.grids.tolist() == [[8, 6]]
    assert sequence.num_patches == 48
    dark = batch.given_maps[map_state(network.name, "patches")][:, 1] > 1
    assert torch.equal(dark, (sequence.row < 2) & (sequence.col >= 4))
    moved = batch.to("meta").given_maps
    assert len(moved) == 2
    assert {values.device.type for values in moved.values()} == {"meta"}


@pytest.mark.parametrize("mix_pages", [0.0, 1.0])
def test_maps_move_and_mix_with_the_pages(network, corpus, page_cache, tmp_path, mix_pages):
    """The network measures brightness: what it saw at an address is what the student's own pixels say there."""
    moving = Augmentation(ink=0, contrast=0, grey=0, scan=0, rotate=0.1, shear=0.1)
    recipe = replace(RECIPE, augmentation=moving, mix_pages=mix_pages)
    data = read_labelled(corpus)
    batch = batch_of(data, network, page_cache, tmp_path, recipe)
    found = batch.given_maps[map_state(network.name, "patches")][:, 0]
    seen = batch.sequence.patches.mean(1)
    # interpolated between so few cells; .71 where maps stay where they were, .76 where their pages are not mixed
    assert torch.corrcoef(torch.stack([found, seen]))[0, 1] > 0.85


def test_a_pages_target_is_mean_and_maximum_of_its_clean_map_standardised(network, corpus, page_cache, tmp_path):
    data = read_labelled(corpus)
    maps = prepared(network, data.paths, page_cache, tmp_path)
    still = batch_of(data, network, page_cache, tmp_path)
    moved = batch_of(data, network, page_cache, tmp_path, replace(RECIPE, augmentation=Augmentation()))
    name = map_state(network.name, "pages")
    assert torch.equal(still.given_maps[name], moved.given_maps[name])
    found = raw(still.given_maps[name], maps.pages)
    with open_document(data.paths[still.index[0]], network.rendering("pdfium")) as document:
        clean = network(np.asarray(document[0]))
    torch.testing.assert_close(found[0], torch.cat([clean.mean((1, 2)), clean.amax((1, 2))]), atol=2e-3, rtol=1e-3)


def test_targets_of_all_pages_have_mean_0_and_deviation_1(network, corpus, page_cache, tmp_path):
    varying = OnnxNetwork(f"{network.file}:mixed")
    maps = prepared(varying, read_labelled(corpus).paths, page_cache, tmp_path)
    stored = [load_file(file) for file in sorted(set(maps.files.values()))]
    for of_page, moments in ((False, maps.patches), (True, maps.pages)):
        values = [
            v.float().reshape(len(v), -1) for file in stored for n, v in file.items() if n.endswith("page") == of_page
        ]
        rows = moments.standardise(torch.cat(values, 1).T)
        torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), atol=1e-4, rtol=0)
        varies = (moments.std != 1).float()  # the largest brightness is that of white paper on every page
        assert varies.sum() >= len(varies) - 1
        torch.testing.assert_close(rows.std(0, correction=0), varies, atol=1e-4, rtol=0)


def test_a_channel_that_never_varies_is_0_and_not_noise(page_cache, tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf_bytes(contents=[b""]))
    constant = OnnxNetwork(f"{write_network(tmp_path / 'tiny.onnx')}:brightness")
    maps = prepared(constant, [str(tmp_path / "a.pdf")], page_cache, tmp_path / "cache")
    assert torch.equal(maps.patches.std, torch.ones(2))


def test_maps_are_computed_once_and_are_those_of_the_network(network, corpus, page_cache, tmp_path, monkeypatch):
    paths = read_labelled(corpus).paths
    first = prepared(network, paths, page_cache, tmp_path)
    stored = load_file(first.files[paths[0]])
    with open_document(paths[0], network.rendering("pdfium")) as document:
        for number, page in enumerate(document):
            live = pool_map(network(np.asarray(page)), (8, 6)).half()
            assert torch.equal(stored[str(number)], live)
    monkeypatch.setattr(OnnxNetwork, "__call__", lambda *_: pytest.fail("computed again"))
    again = prepared(network, paths, page_cache, tmp_path)
    assert again.files == first.files
    assert torch.equal(again.patches.mean, first.patches.mean)


def test_maps_are_kept_by_content_network_output_and_grid(network, page_cache, tmp_path):
    for name, shift in (("a", 0), ("copy", 0), ("b", 9)):
        (tmp_path / f"{name}.pdf").write_bytes(classed_pdf("bars", 1, shift))
    paths = [str(tmp_path / f"{name}.pdf") for name in ("a", "copy", "b")]

    def files(network, config=CONFIG):
        return list(prepared(network, paths, page_cache, tmp_path / "cache", config).files.values())

    a, copy, b = files(network)
    assert a == copy != b
    others = [
        OnnxNetwork(f"{network.file}:mixed"),
        OnnxNetwork(f"{write_network(tmp_path / 'tiny.onnx', (256, 192), seed=1)}:brightness"),
    ]
    found = [files(other)[0] for other in others]
    found += [files(network, replace(CONFIG, **changed))[0] for changed in ({"patch_size": 8}, {"page_size": 64})]
    assert len({a, *found}) == 5
    same = shutil.copy(network.file, tmp_path / "renamed.onnx")
    assert files(OnnxNetwork(f"{same}:brightness"))[0] == a


def test_interrupted_maps_go_on_where_they_stopped(network, corpus, page_cache, tmp_path, monkeypatch):
    paths = read_labelled(corpus).paths
    whole = prepared(network, paths, page_cache, tmp_path / "whole")
    original, pages = OnnxNetwork.__call__, []

    def counting(self, page):
        pages.append(page)
        if len(pages) == 12:
            raise KeyboardInterrupt
        return original(self, page)

    monkeypatch.setattr(OnnxNetwork, "__call__", counting)
    with pytest.raises(KeyboardInterrupt):
        prepared(network, paths, page_cache, tmp_path / "cut")
    done = sorted((tmp_path / "cut").rglob("*.safetensors"))
    assert 3 <= len(done) <= 5
    done[0].write_bytes(done[0].read_bytes()[:-7])  # cut short by a full disk
    prepared(network, paths, page_cache, tmp_path / "cut")
    assert 12 < len(pages) < 12 + 30 - 5
    for file in whole.files.values():
        (same,) = (tmp_path / "cut").rglob(file.name)
        assert same.read_bytes() == file.read_bytes()


def test_a_password_opens_documents(network, tmp_path):
    path = str(tmp_path / "locked.pdf")
    (tmp_path / "locked.pdf").write_bytes(ENCRYPTED)
    files = PageCache(tmp_path, CONFIG.rendering).prepare([path], workers=0, password="secret")[0]
    where = {"cache": tmp_path, "workers": 0}
    assert prepare_maps(network, files, CONFIG.rendering, PROCESS, password="secret", **where).files.keys() == {path}


def test_documents_that_the_network_cannot_be_shown(network, corpus, page_cache, tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.pdf").write_bytes(classed_pdf("text", 1, number))
    paths = [str(tmp_path / f"{number}.pdf") for number in range(3)]
    files = rendered(paths, page_cache)
    (tmp_path / "0.pdf").write_bytes(b"<html>")

    def batches(classes):
        data = LabelledDocuments(tuple(paths), (0, 1, 1) if classes else (-1,) * 3, classes)
        where = {"cache": tmp_path / "cache", "workers": 0}
        recipe = replace(RECIPE, mix_pages=0.5)
        return paired_batches(data, files, CONFIG, [], recipe, PROCESS, networks=[network], **where)

    without_labels, left_out = batches(())
    assert len(without_labels.labelled.dataset) == 2
    assert without_labels.labelled.dataset.partners is None  # of any kind: documents keep their own pages
    assert [line.split(":")[0] for line in left_out] == ["Unreadable"]
    with pytest.raises(DataError, match=r"0\.pdf"):
        batches(("a", "b"))
    for path in paths:
        open(path, "w").close()
    with pytest.raises(DataError, match="Empty"):
        prepare_maps(network, files, CONFIG.rendering, PROCESS, cache=tmp_path / "new", workers=0)
