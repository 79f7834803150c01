"""Rendered pages on disk: found again by content and rendering, and never half there."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace

import numpy as np
import pytest
from conftest import classed_pdf
from PIL import Image

from docvit.documents import cache as room
from docvit.documents.cache import CachedDocument, PageCache, default_cache
from docvit.documents.pages import read_document
from docvit.documents.patches import pack
from docvit.documents.rendering import Rendering

RENDERING = Rendering(size=64, mode="L")


@pytest.fixture
def pdf(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(classed_pdf("blocks", 3))
    return path


@pytest.fixture
def cache(tmp_path):
    return PageCache(tmp_path / "cache", RENDERING)


@pytest.fixture
def rendered(monkeypatch):
    """The paths that are rendered from here on."""
    paths = []
    original = room.read_documents

    def read(asked, *args, **options):
        paths.extend(asked)
        return original(paths[len(paths) - len(asked) :], *args, **options)

    monkeypatch.setattr(room, "read_documents", read)
    return paths


def prepare(cache, *paths):
    files, errors = cache.prepare([str(path) for path in paths], workers=0)
    assert not errors
    return [files[str(path)] for path in paths]


def test_what_is_read_back_is_what_was_rendered(cache, pdf):
    (file,) = prepare(cache, pdf)
    document, expected = CachedDocument.open(file), read_document(pdf, RENDERING)
    assert (document.num_pages, document.indices) == (3, (0, 1, 2))
    assert document.kept == tuple(pack([expected], channels=1).page_bounds.diff().tolist())
    stack = document.load([2, 0])
    assert (stack.indices, stack.num_pages) == ([2, 0], 3)
    for page, index in zip(stack.pages, stack.indices, strict=True):
        assert np.array_equal(page, expected.pages[index])


def test_a_long_document_keeps_its_true_page_numbers(tmp_path):
    (tmp_path / "long.pdf").write_bytes(classed_pdf("text", 10))
    (file,) = prepare(PageCache(tmp_path, RENDERING, max_pages=4), tmp_path / "long.pdf")
    document = CachedDocument.open(file)
    assert (document.num_pages, document.indices) == (10, (0, 3, 6, 9))
    assert document.load([6]).indices == [6]


def test_the_second_time_nothing_is_rendered_whatever_the_file_is_called_by_then(cache, pdf, rendered, tmp_path):
    first = prepare(cache, pdf)
    os.utime(pdf, (1, 1))
    moved = pdf.rename(tmp_path / "renamed.pdf")
    assert rendered == [str(pdf)]
    assert prepare(cache, moved) == first
    assert rendered == [str(pdf)]


def test_another_byte_or_another_rendering_is_another_entry(cache, pdf, rendered):
    files = prepare(cache, pdf)
    for rendering in (replace(RENDERING, size=48), replace(RENDERING, supersample=1), replace(RENDERING, mode="RGB")):
        files += prepare(replace(cache, rendering=rendering), pdf)
    files += prepare(replace(cache, max_pages=2), pdf)
    pdf.write_bytes(pdf.read_bytes() + b"\n")
    files += prepare(cache, pdf)
    assert len(set(files)) == len(rendered) == 6


def test_copies_share_an_entry_and_are_rendered_once(cache, pdf, rendered, tmp_path):
    copy = tmp_path / "copy.pdf"
    copy.write_bytes(pdf.read_bytes())
    one, two = prepare(cache, pdf, copy)
    assert one == two
    assert len(rendered) == 1


def test_a_folder_of_page_images_is_keyed_by_its_pages(cache, tmp_path, rendered):
    folder = tmp_path / "scan"
    folder.mkdir()
    for name, colour in (("1.png", 0), ("2.png", 255)):
        Image.new("L", (64, 64), colour).save(folder / name)
    first = prepare(cache, folder)
    assert prepare(cache, folder) == first
    (folder / "1.png").rename(folder / "3.png")  # another order of pages
    assert prepare(cache, folder) != first
    assert len(rendered) == 2


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"x" * len(b)])
def test_a_damaged_entry_is_rendered_anew(cache, pdf, damage):
    (file,) = prepare(cache, pdf)
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert prepare(cache, pdf) == [file]
    assert file.read_bytes() == whole


def test_a_writer_that_is_killed_leaves_no_entry(cache, pdf, monkeypatch):
    def killed(partial, file):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(cache, pdf)
    assert not list(cache.folder.rglob("*.safetensors"))
    assert CachedDocument.open(prepare(cache, pdf)[0]).num_pages == 3


def test_several_processes_fill_one_cold_cache_at_once(cache, pdf, tmp_path, monkeypatch):
    context, replace_file = multiprocessing.get_context("fork"), os.replace
    barrier, found = context.Barrier(3), context.Queue()
    copies = [tmp_path / f"{number}.pdf" for number in range(2)]
    for number, copy in enumerate(copies):
        copy.write_bytes(pdf.read_bytes() + b"%" * number)

    def replace_together(partial, file):
        barrier.wait(30)  # all have written theirs
        replace_file(partial, file)

    monkeypatch.setattr(os, "replace", replace_together)
    processes = [context.Process(target=lambda: found.put(prepare(cache, *copies))) for _ in range(3)]
    for process in processes:
        process.start()
    files = [found.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert files[0] == files[1] == files[2]
    assert {path for path in cache.folder.rglob("*") if path.is_file()} == set(files[0])  # nothing else is left
    assert [CachedDocument.open(file).num_pages for file in files[0]] == [3, 3]


def test_every_unreadable_file_is_named_and_the_others_are_there(cache, pdf, tmp_path):
    broken = {name: tmp_path / name for name in ("one.pdf", "two.pdf", "empty.pdf", "gone.pdf", "lost.pdf")}
    broken["one.pdf"].write_bytes(b"%PDF-1.4 nothing")
    broken["two.pdf"].write_bytes(b"%PDF-1.4 nothing")  # the same content, yet a file of its own
    broken["empty.pdf"].write_bytes(b"")
    files, errors = cache.prepare([str(path) for path in (*broken.values(), pdf)], workers=0)
    assert set(files) == {str(pdf)}
    assert {(os.path.basename(e.path), e.kind) for e in errors} == {
        ("one.pdf", "Unreadable"),
        ("two.pdf", "Unreadable"),
        ("empty.pdf", "Empty"),
        ("gone.pdf", "NotFound"),
        ("lost.pdf", "NotFound"),
    }


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCVIT_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("DOCVIT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "docvit"
