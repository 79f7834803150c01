"""Before a training: documents are rendered once, broken ones are left out or refused, the rest make batches."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, classed_pdf

from docvit.data.dataset import UNLABELLED, DocumentDataset, view_of
from docvit.data.labels import DataError
from docvit.data.loader import DocumentLoader
from docvit.model.config import DocViTConfig
from docvit.training import batches
from docvit.training.batches import loader_workers, shuffled
from docvit.training.distributed import Process, process_group
from docvit.training.rendering import render, render_all, render_readable

CONFIG = DocViTConfig(**TINY, num_classes=3, mean=(0.9,), std=(0.25,))
HERE = Process(torch.device("cpu"))


@pytest.fixture
def paths(tmp_path):
    """Three documents, the last of them twice, and two broken ones."""
    for i in range(3):
        (tmp_path / f"{i}.pdf").write_bytes(classed_pdf("bars", 2, 5.0 * i))
    (tmp_path / "bad.pdf").write_bytes(b"<html>")
    return [str(tmp_path / f"{name}.pdf") for name in (0, 1, 2, 2, "bad", "gone")]


def test_what_can_be_read_is_rendered_and_the_rest_is_named(paths, tmp_path, caplog):
    files, unreadable = render(paths, CONFIG.rendering, HERE, cache=tmp_path / "cache", workers=0)
    assert list(files) == paths[:3]
    assert all(file.is_file() for file in files.values())
    assert [line.split(":")[0] for line in unreadable] == ["Unreadable", "NotFound"]
    readable, problems = render_readable(paths, CONFIG.rendering, HERE, cache=tmp_path / "cache", workers=0)
    assert (readable, problems) == (files, unreadable)
    assert "2 of 5 documents are left out" in caplog.text
    assert all(line in caplog.text for line in problems)


def test_labelled_documents_must_all_be_readable(paths, tmp_path):
    with pytest.raises(DataError) as raised:
        render_all(paths, CONFIG.rendering, HERE, cache=tmp_path / "cache", workers=0)
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["Unreadable", "NotFound"]
    with pytest.raises(DataError, match="Unreadable"):
        render_readable(paths[4:], CONFIG.rendering, HERE, cache=tmp_path / "cache", workers=0)
    with pytest.raises(DataError, match="there are none"):
        render_readable([], CONFIG.rendering, HERE, cache=tmp_path / "cache", workers=0)


def test_documents_without_labels_make_batches_too(paths, tmp_path):
    files = list(render_all(paths[:3], CONFIG.rendering, HERE, cache=tmp_path / "cache", workers=0).values())
    view = view_of(CONFIG, max_pages=1, training=True)
    assert (view.rendering, view.mean, view.std) == (CONFIG.rendering, CONFIG.mean, CONFIG.std)
    batches = shuffled(DocumentDataset(files, None, view, seed=4), HERE, budget=10**6)
    (batch,) = batches
    assert batch.labels.tolist() == [UNLABELLED] * 3
    assert sorted(batch.index.tolist()) == [0, 1, 2]
    direct = DocumentLoader(DocumentDataset(files, [2, 0, 1], view, seed=4), budget=10**6, shuffle=True)
    labelled = next(iter(direct))
    assert torch.equal(labelled.sequence.patches, batch.sequence.patches)


def test_weights_say_what_is_drawn(paths, tmp_path):
    files = list(render_all(paths[:3], CONFIG.rendering, HERE, cache=tmp_path / "cache", workers=0).values())
    weights = np.array([0.0, 1.0, 0.0])
    batches = shuffled(DocumentDataset(files, None, view_of(CONFIG)), HERE, budget=10**6, weights=weights)
    assert {i for batch in batches for i in batch.index.tolist()} == {1}


def test_alone_a_process_is_the_first_of_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as process:
        assert process == (torch.device("cpu"), 0, 1)
    with pytest.raises(ValueError, match="no device 'nonsense'"), process_group("nonsense"):
        pass
    assert loader_workers(torch.device("cpu")) == 0


def test_batches_are_loaded_by_further_processes_where_shared_memory_holds_them(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path)
    for free, workers in ((2**30, 6), (64 * 2**20, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, free=free: SimpleNamespace(free=free))
        assert loader_workers(torch.device("cuda")) == workers
        assert ("has 64 MB free of the 1024 MB" in caplog.text) == (workers == 0)
    monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path / "not there")
    assert loader_workers(torch.device("cuda")) == 6
