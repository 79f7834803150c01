"""Scans among the documents to learn from: what OCR reads of them becomes words like any others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, TINY

from docvit.data.labels import read_labelled
from docvit.documents.hashing import hash_ngrams
from docvit.documents.words import Words
from docvit.training.distributed import Process
from docvit.training.loop import TrainSettings
from docvit.training.masked import PretrainRecipe, pretrain_documents
from docvit.training.recipe import Recipe, build_model
from docvit.training.rendering import render_all
from docvit.training.supervised import train_documents
from kd.config import DistillConfig
from kd.documents.paired import paired_batches
from kd.documents.run import distill_documents

WORDED = {"model": "docvit_small_patch16", "settings": TINY | {"words": 256}, "train": TrainSettings(epochs=1)}
COARSE = TINY | {"patch_size": 32, "grid": (2, 2), "page_size": 128}


@pytest.fixture(autouse=True)
def reads(monkeypatch):
    """OCR finds one word on every page; the list grows by the size of each."""
    pages = []

    def ocr_words(page):
        pages.append(page.size)
        return Words(("total",), np.array([[0.1, 0.1, 0.2, 0.2]], np.float32), "ocr")

    monkeypatch.setattr("docvit.documents.workers.require_ocr", lambda: None)
    monkeypatch.setattr("docvit.documents.pages.ocr_words", ocr_words)
    return pages


@pytest.fixture
def few(corpus):
    """One document of one page per class, without a text layer."""
    data = read_labelled(corpus)
    return data.subset([data.labels.index(label) for label in range(len(CLASSES))])


@pytest.fixture
def running(tmp_path):
    return {"device": "cpu", "workers": 0, "cache": tmp_path / "cache"}


def knows_the_word(model):
    """Whether the buckets of the word's n-grams count as frequent, and no others."""
    read = np.isin(np.arange(256), hash_ngrams(["total"])[0] % 256)
    idf = model.words.idf.numpy()
    return bool(idf[read].max() < idf[~read].min())


@pytest.mark.parametrize("ocr_pages", [0, 1])
@pytest.mark.parametrize("way", ["train", "pretrain", "distil"])
def test_words_that_ocr_reads_are_counted(few, tmp_path, running, reads, way, ocr_pages):
    if way == "train":
        model, _ = train_documents(few, tmp_path / "out", Recipe(**WORDED, ocr_pages=ocr_pages), **running)
    elif way == "pretrain":
        recipe = PretrainRecipe(**WORDED, ocr_pages=ocr_pages)
        model, _ = pretrain_documents(few.paths, tmp_path / "out", recipe, **running)
    else:
        recipe = Recipe(**WORDED, ocr_pages=ocr_pages)
        done = distill_documents(recipe, build_model(Recipe(settings=TINY), CLASSES), few, tmp_path / "out", **running)
        model = done.student
    assert knows_the_word(model) == bool(ocr_pages)
    assert bool(reads) == bool(ocr_pages)


def test_a_model_of_pixels_alone_has_nothing_read(few, tmp_path, running, reads, caplog):
    recipe = Recipe(**WORDED | {"settings": TINY}, ocr_pages=1)
    train_documents(few, tmp_path / "out", recipe, **running)
    assert not reads
    assert "given no words: nothing is read by OCR" in caplog.text


def test_a_teacher_with_words_has_scans_read_for_a_student_of_pixels(few, tmp_path, running, reads):
    teacher = build_model(Recipe(**WORDED), CLASSES)
    recipe = Recipe(**WORDED | {"settings": TINY}, ocr_pages=1)
    reading = {"valid": few, "unlabelled": [few.paths[0]], **running}
    distill_documents(recipe, teacher, few, tmp_path / "out", DistillConfig(alpha=1.0), **reading)
    assert len(reads) == 2 * len(few)  # once for training, where pages are kept, and once to compare


def test_a_teacher_of_another_rendering_sees_the_words_of_scans(few, running):
    student, teacher = (build_model(Recipe(**WORDED | {"settings": s}), CLASSES) for s in (COARSE, WORDED["settings"]))
    recipe = replace(Recipe(**WORDED), lose_words=0.0, word_dropout=0.0, mix_pages=0.0)
    process, how = Process(torch.device("cpu")), {"workers": 0, "cache": running["cache"], "ocr_pages": 1}
    files = render_all(few.paths, student.config.rendering, process, **how)
    batches, _ = paired_batches(few, files, student.config, [teacher.config], recipe, process, **how)
    (of_teacher,) = next(iter(batches.labelled)).of_teachers
    assert len(of_teacher.words) == len(hash_ngrams(["total"])[0]) * of_teacher.num_documents
