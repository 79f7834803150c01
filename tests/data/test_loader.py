"""Batches from worker processes."""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch
from torch.utils.data import get_worker_info

from docvit.data.dataset import DocumentDataset, View
from docvit.data.labels import read_labelled
from docvit.data.loader import DocumentLoader
from docvit.documents.cache import PageCache
from docvit.documents.rendering import Rendering

RENDERING = Rendering(size=64, mode="L")


class Interrupted(DocumentDataset):
    """Ctrl-C while a worker loads."""

    def __getitem__(self, key):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(key)


@pytest.mark.skipif(sys.platform != "linux", reason="data sets of a test reach workers by fork only")
def test_ctrl_c_is_the_training_loop_s_and_workers_go_on_loading(corpus, page_cache):
    data = read_labelled(corpus)
    files, _ = PageCache(page_cache, RENDERING, words=True).prepare(data.paths, workers=0)
    dataset = Interrupted([files[path] for path in data.paths], data.labels, View(RENDERING))
    alone, beside = (list(DocumentLoader(dataset, budget=60, workers=workers)) for workers in (0, 2))
    assert len(beside) > 2
    for one, two in zip(alone, beside, strict=True):
        assert torch.equal(one.sequence.patches, two.sequence.patches)
