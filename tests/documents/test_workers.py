"""Documents read in worker processes: order, bounds, and workers that hang, crash or eat memory."""

from __future__ import annotations

import os
import signal
import sys
import time
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from docvit.documents import workers as pool
from docvit.documents.errors import NotFound, Timeout, TooLarge, Unreadable
from docvit.documents.pages import PageStack, read_document
from docvit.documents.rendering import Rendering
from docvit.documents.workers import read_alone, read_documents

forked = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")


def misbehave(source, *args, **options):
    """In place of `read_document`: what the file's name says."""
    path = source.name
    if "hang" in path:
        time.sleep(60)
    if "segfault" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "abort" in path:
        os.kill(os.getpid(), signal.SIGABRT)
    if "greedy" in path:
        np.ones(1 << 30)
    return PageStack(path, [], [], 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_order_and_equal_reading_here(make_pdf, workers):
    paths = [str(make_pdf(f"{i}.pdf", [(612, 792)] * (7 - i))) for i in range(6)]
    paths.insert(2, "missing.pdf")
    rendering = Rendering(size=64, mode="L")
    results = list(read_documents(paths, rendering, max_pages=4, workers=workers))
    assert [result.path for result in results] == paths
    assert isinstance(results.pop(2), NotFound)
    for result in results:
        expected = read_document(result.path, rendering, max_pages=4)
        assert (result.indices, result.num_pages) == (expected.indices, expected.num_pages)
        np.testing.assert_array_equal(result.pages, expected.pages)


def test_paths_are_taken_no_faster_than_results(make_pdf):
    path, taken = str(make_pdf()), []
    results = read_documents((taken.append(i) or path for i in range(100_000)), Rendering(size=32), workers=2, ahead=3)
    next(results)
    time.sleep(0.3)
    assert len(taken) <= 5
    next(results)
    assert len(taken) <= 6
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 3


@forked
def test_a_bad_document_costs_only_itself(monkeypatch):
    monkeypatch.setattr(pool, "read_document", misbehave)
    paths = ["a", "hang", "b", "segfault", "c", "abort", "greedy", "d"]
    results = list(read_documents(paths, workers=2, timeout=1.0, memory_limit=1 << 30))
    kinds = [type(result) for result in results]
    assert kinds == [PageStack, Timeout, PageStack, Unreadable, PageStack, TooLarge, TooLarge, PageStack]
    assert [result.path for result in results] == paths
    assert "1 seconds" in results[1].message


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=forked)])
def test_an_error_of_any_kind_costs_one_document(monkeypatch, workers):
    def surprise(source, *args, **options):
        if source.name == "b":
            raise OSError("a truncated image")
        return PageStack(source.name, [], [], 1)

    monkeypatch.setattr(pool, "read_document", surprise)
    results = list(read_documents(["a", "b", "c"], workers=workers))
    assert [type(result) for result in results] == [PageStack, Unreadable, PageStack]
    assert "a truncated image" in results[1].message


@forked
def test_a_nested_form_bomb_is_stopped(tmp_path, make_pdf):
    from conftest import assemble

    levels, bar = 10, b"0 0 9 9 re f "
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Resources<</XObject<</F 5 0 R>>>>/Contents 4 0 R>>"
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page]
    objects.append(b"<</Length 4>>stream\n/F Do\nendstream")
    for level in range(levels):
        drawn = bar * 20 if level == levels - 1 else b"/F Do " * 20
        inner = b"/Resources<</XObject<</F %d 0 R>>>>" % (6 + level) if level < levels - 1 else b""
        form = b"<</Type/XObject/Subtype/Form/BBox[0 0 612 792]%s/Length %d>>stream\n%s\nendstream"
        objects.append(form % (inner, len(drawn), drawn))
    (tmp_path / "bomb.pdf").write_bytes(assemble(objects))
    paths = [str(tmp_path / "bomb.pdf"), str(make_pdf())]
    bomb, fine = read_documents(paths, Rendering(size=64), workers=1, timeout=5, memory_limit=200 << 20)
    assert isinstance(bomb, (TooLarge, Timeout))
    assert isinstance(fine, PageStack)


def test_no_worker_is_left_behind(make_pdf):
    import multiprocessing

    before = multiprocessing.active_children()  # standing workers of single calls
    results = read_documents([str(make_pdf())] * 20, Rendering(size=32))
    next(results)
    assert set(multiprocessing.active_children()) - set(before)
    results.close()
    assert not set(multiprocessing.active_children()) - set(before)


def test_images_that_cannot_be_loaded_cost_themselves(tmp_path):
    Image.effect_noise((300, 300), 90).save(tmp_path / "a.png")
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    cut_off = Image.open(BytesIO((tmp_path / "a.png").read_bytes()[:5000]))
    whole = Image.open(tmp_path / "a.png")
    documents = [closed, whole, cut_off, [whole, closed], [whole, whole]]
    results = list(read_documents(documents, Rendering(size=32), workers=1))
    assert [type(result) for result in results] == [Unreadable, PageStack, Unreadable, Unreadable, PageStack]
    with pytest.raises(Unreadable):
        read_alone(closed)
    assert read_alone(whole).num_pages == 1  # by the same worker


@pytest.mark.parametrize("wrong", [{"max_pages": 0}, {"max_pages": 1.5}, {"timeout": 0}, {"workers": -1}])
def test_settings_out_of_range_are_no_fault_of_the_file(make_pdf, wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        next(iter(read_documents([make_pdf()], **wrong)))
    if name != "workers":
        with pytest.raises(ValueError, match=name):
            read_alone(make_pdf(), **wrong)
