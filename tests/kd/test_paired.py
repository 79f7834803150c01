"""Teachers see what the student sees: the same pages, changed alike, with the same regions left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import CLASSES, TINY, classed_pdf, pdf_bytes

from docvit.data.augment import Augmentation
from docvit.data.dataset import DocumentDataset
from docvit.data.labels import read_labelled
from docvit.data.loader import DocumentLoader
from docvit.documents.cache import PageCache
from docvit.documents.patches import pack
from docvit.model.config import DocViTConfig
from docvit.training.batches import training_view
from docvit.training.distributed import Process
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe
from kd.config import DistillationError
from kd.documents.paired import PairedBatches, PairedDataset, paired_batches, same_regions
from kd.teacher import TeacherCache

CONFIG = DocViTConfig(**TINY, num_classes=3, classes=CLASSES)
FINE = replace(CONFIG, patch_size=8, embed_dim=48)
RECIPE = Recipe(budget=60, max_pages=2, patch_dropout=0.4, train=TrainSettings(seed=3))
PROCESS = Process(torch.device("cpu"))


def image(sequence, page, patch_size):
    """One page's pixels (H, W) from its patches, and where there are any."""
    rows, cols = sequence.grids[page].tolist()
    pixels, there = (torch.zeros(rows * patch_size, cols * patch_size) for _ in range(2))
    for i in range(*sequence.page_bounds[page : page + 2].tolist()):
        r, c = int(sequence.row[i]) * patch_size, int(sequence.col[i]) * patch_size
        under = slice(r, r + patch_size), slice(c, c + patch_size)
        pixels[under], there[under] = sequence.patches[i].view(patch_size, patch_size), 1
    return pixels, there.bool()


@pytest.fixture(scope="module")
def squares(tmp_path_factory, page_cache):
    """Square documents of three pages, which fill grids of any patch size; rendered for each of both configurations."""
    folder = tmp_path_factory.mktemp("squares")
    drawing = b"0 g\n" + b"\n".join(
        b"%d %d 37 23 re f" % (x, y) for x in range(20, 560, 60) for y in range(20, 560, 50)
    )
    paths = []
    for i in range(4):
        (folder / f"{i}.pdf").write_bytes(pdf_bytes([(600, 600)] * 3, contents=[drawing + b"\n%% %d" % i] * 3))
        paths.append(str(folder / f"{i}.pdf"))
    caches = [PageCache(page_cache, config.rendering, words=True) for config in (CONFIG, FINE)]
    return [list(cache.prepare(paths, workers=0)[0].values()) for cache in caches]


def dataset(squares, recipe=RECIPE, **options):
    own, theirs = squares
    fine = DocumentDataset(theirs, None, replace(training_view(FINE, recipe), patch_dropout=0.0), seed=3)
    view = training_view(CONFIG, recipe)
    return PairedDataset(own, None, view, seed=3, **({"others": [None, fine]} | options))


def test_another_patch_size_sees_the_same_pixels_and_the_same_regions(squares):
    batch = next(iter(DocumentLoader(dataset(squares), budget=10**6)))
    ours, (same, theirs) = batch.sequence, batch.of_teachers
    assert same is None
    assert torch.equal(ours.page_index, theirs.page_index)
    assert torch.equal(ours.document_bounds, theirs.document_bounds)
    left_out = 0
    for page in range(ours.num_pages):
        (a, seen), (b, seen_by_teacher) = image(ours, page, 16), image(theirs, page, 8)
        assert not (seen_by_teacher & ~seen).any()
        torch.testing.assert_close(b[seen_by_teacher], a[seen_by_teacher])
        blank = a[seen & ~seen_by_teacher]  # of finer patches more are blank
        assert len(blank) == 0 or blank.std() < 0.1
        left_out += int((~seen).sum())
    assert left_out > 0


def test_without_dropout_nothing_is_left_out_for_the_teacher(squares):
    recipe = replace(RECIPE, patch_dropout=0.0)
    data = dataset(squares, recipe)
    batch = next(iter(DocumentLoader(data, budget=10**6)))
    alone = next(iter(DocumentLoader(data.others[1], budget=10**6))).sequence
    assert torch.equal(batch.of_teachers[1].patches, alone.patches)


def test_a_teacher_of_another_rendering_sees_the_same_pages_mixed(squares):
    recipe = replace(RECIPE, patch_dropout=0.0, mix_pages=1.0)
    batch = next(iter(DocumentLoader(dataset(squares, recipe), budget=10**6)))
    unmixed = next(iter(DocumentLoader(dataset(squares, replace(recipe, mix_pages=0.0)), budget=10**6)))
    ours, theirs = batch.sequence, batch.of_teachers[1]
    differing = 0
    for page in range(ours.num_pages):
        (a, _), (b, seen), (before, _) = (
            image(ours, page, 16),
            image(theirs, page, 8),
            image(unmixed.sequence, page, 16),
        )
        torch.testing.assert_close(b[seen], a[seen])
        differing += not torch.equal(a, before)
    assert 0 < differing < ours.num_pages  # first pages are a document's own


def test_regions_overlap_whatever_the_grids():
    generator = torch.Generator().manual_seed(0)

    def drawn(*sizes):
        return pack([[torch.rand(1, h, w, generator=generator) for h, w in sizes]], 8, channels=1, drop_blank=False)

    def thinned(sequence):
        return sequence.select(torch.rand(sequence.num_patches, generator=generator) > 0.6)

    ours, theirs = thinned(drawn((24, 40), (32, 16), (8, 8))), thinned(drawn((64, 32), (16, 16), (56, 24)))
    found = same_regions(theirs, ours)
    expected = []
    for i in range(theirs.num_patches):
        page = int(theirs.page_of_patch[i])
        (rows, cols), (r, c) = theirs.grids[page].tolist(), (int(theirs.row[i]), int(theirs.col[i]))
        there = False
        for j in range(*ours.page_bounds[page : page + 2].tolist()):
            (own_rows, own_cols), (y, x) = ours.grids[page].tolist(), (int(ours.row[j]), int(ours.col[j]))
            down = r * own_rows < (y + 1) * rows and y * rows < (r + 1) * own_rows
            across = c * own_cols < (x + 1) * cols and x * cols < (c + 1) * own_cols
            there = there or (down and across)
        expected.append(there)
    assert torch.equal(found.patches, theirs.patches[torch.tensor(expected)])
    assert 0 < found.num_patches < theirs.num_patches


def test_a_second_draw_is_the_same_pages_changed_otherwise(squares):
    view = training_view(CONFIG, RECIPE)
    second = DocumentDataset(squares[0], None, view, seed=3, draw=1)
    batch = next(iter(DocumentLoader(dataset(squares, others=[second]), budget=10**6)))
    ours, theirs = batch.sequence, batch.of_teachers[0]
    assert torch.equal(ours.page_index, theirs.page_index)
    assert not torch.equal(image(ours, 0, 16)[1], image(theirs, 0, 16)[1])
    still = replace(view, patch_dropout=0.0, augmentation=Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0))
    one, two = (DocumentDataset(squares[0], None, still, seed=3, draw=draw)[2, 1][2] for draw in (0, 1))
    assert one.indices == two.indices
    assert all(torch.equal(a, b) for a, b in zip(one.pages, two.pages, strict=True))


def test_what_the_cache_holds_is_not_loaded_for_the_teachers(squares, tmp_path):
    cache = TeacherCache(tmp_path, {})
    data = dataset(squares, cache=cache)
    batches = DocumentLoader(data, budget=10**6)
    first = next(iter(batches))
    assert first.teacher_outputs is None
    assert len(first.of_teachers) == 2
    cache.write(first.key, {"0.logits": torch.ones(4, 3)})
    again = next(iter(batches))
    assert again.of_teachers == ()
    assert torch.equal(again.to("cpu").teacher_outputs["0.logits"], torch.ones(4, 3))
    batches.set_epoch(1)
    assert next(iter(batches)).teacher_outputs is None


def test_documents_with_other_pages_in_another_rendering_are_refused(squares, page_cache, tmp_path):
    (tmp_path / "short.pdf").write_bytes(pdf_bytes([(600, 600)] * 2))
    short, _ = PageCache(page_cache, FINE.rendering, words=True).prepare([str(tmp_path / "short.pdf")], workers=0)
    other = DocumentDataset(list(short.values()), None, training_view(FINE, RECIPE))
    with pytest.raises(DistillationError, match="2 pages in the teacher's rendering, 3 in the student's"):
        PairedDataset(squares[0][:1], None, training_view(CONFIG, RECIPE), others=[other])


# --- labelled and unlabelled ---


def prepared(corpus, page_cache, unlabelled=(), **options):
    data = read_labelled(corpus)
    files, _ = PageCache(page_cache, CONFIG.rendering, words=True).prepare(data.paths, workers=0)
    return paired_batches(
        data, files, CONFIG, [CONFIG, FINE], RECIPE, PROCESS, unlabelled=unlabelled, workers=0, **options
    )


@pytest.fixture
def further(tmp_path):
    """Five documents without labels, one a copy, and two broken ones."""
    for i in range(4):
        (tmp_path / f"{i}.pdf").write_bytes(classed_pdf("bars", 2, 3.0 * i + 1))
    (tmp_path / "copy.pdf").write_bytes((tmp_path / "0.pdf").read_bytes())
    (tmp_path / "bad.pdf").write_bytes(b"<html>")
    (tmp_path / "empty.pdf").touch()
    return sorted(map(str, tmp_path.iterdir()))


def test_broken_documents_without_labels_are_left_out_counted_and_listed(corpus, page_cache, further, caplog):
    batches, left_out = prepared(corpus, page_cache, further)
    assert len(batches.unlabelled.dataset) == 4
    assert [line.split(":")[0] for line in left_out] == ["Unreadable", "Empty"]
    assert "2 of 7 documents are left out" in caplog.text
    assert all(line in caplog.text for line in left_out)


def test_what_is_evaluated_on_is_not_learnt_without_labels_under_any_name(corpus, page_cache, further):
    data, evaluated = read_labelled(corpus), next(path for path in further if path.endswith("0.pdf"))
    copy = next(path for path in further if path.endswith("copy.pdf"))
    files, _ = PageCache(page_cache, CONFIG.rendering, words=True).prepare([*data.paths, evaluated], workers=0)
    batches, _ = paired_batches(data, files, CONFIG, [CONFIG], RECIPE, PROCESS, unlabelled=further, workers=0)
    assert len(batches.unlabelled.dataset) == 3
    assert files[evaluated] not in [document.file for document in batches.unlabelled.dataset.documents]
    of_labelled, _ = paired_batches(data, files, CONFIG, [CONFIG], RECIPE, PROCESS, unlabelled=data.paths, workers=0)
    assert len(of_labelled.unlabelled.dataset) == len(data)  # these may be
    none, _ = paired_batches(data, files, CONFIG, [CONFIG], RECIPE, PROCESS, unlabelled=[copy], workers=0)
    assert none.unlabelled is None


def seen(batch):
    other = batch.unlabelled
    return batch.index.tolist(), batch.key, other.index.tolist(), other.key, other.labels.tolist()


def test_every_step_has_a_batch_without_labels_and_goes_on_where_it_stopped(corpus, page_cache, further):
    batches, _ = prepared(corpus, page_cache, further)
    whole = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        whole += [seen(batch) for batch in batches]
    assert {label for *_, labels in whole for label in labels} == {-1}
    batches.set_epoch(1, skip=1)
    assert [seen(batch) for batch in batches] == whole[len(batches) + 1 : 2 * len(batches)]
    round_of = len(batches.unlabelled)
    assert sorted(i for _, _, other, _, _ in whole[:round_of] for i in other) == [0, 1, 2, 3]


def test_a_round_of_several_batches_goes_on_where_it_stopped(corpus, page_cache, further):
    """The stream without labels is at another batch of another round than the labelled one when a run is resumed."""
    batches, _ = prepared(corpus, page_cache, further)
    batches.unlabelled.sampler.count = 3  # batches per round; labelled ones are of another number
    assert len(batches.unlabelled) == 3
    assert len(batches) % 3
    whole = []
    for epoch in range(2):
        batches.set_epoch(epoch)
        whole += [seen(batch) for batch in batches]
    for step in range(1, len(whole), 3):
        epoch, skip = divmod(step, len(batches))
        batches.set_epoch(epoch, skip)
        assert [seen(batch) for batch in batches] == whole[step : (epoch + 1) * len(batches)]


@pytest.mark.parametrize("balanced", [True, False])
def test_a_rare_class_is_drawn_as_often_as_others_where_the_recipe_balances(corpus, page_cache, balanced):
    data = read_labelled(corpus).subset([0, 1, 2, 3, 4])  # four of the first class, one of the second
    files, _ = PageCache(page_cache, CONFIG.rendering, words=True).prepare(data.paths, workers=0)
    recipe = replace(RECIPE, balanced=balanced)
    batches, _ = paired_batches(data, files, CONFIG, [CONFIG], recipe, PROCESS, workers=0)
    drawn = []
    for epoch in range(100):
        batches.set_epoch(epoch)
        drawn += [data.labels[index] for keys in batches.labelled.sampler for _, index in keys]
    assert sum(drawn) / len(drawn) == pytest.approx(0.5 if balanced else 0.2, abs=0.1 if balanced else 1e-9)


def test_documents_have_another_key_in_a_teacher_cache_with_labels_than_without(corpus, page_cache):
    """Without labels their pages are mixed with those of any class, so that teachers see something else."""
    batches, _ = prepared(corpus, page_cache, read_labelled(corpus).paths)
    with_labels, without = (of.dataset for of in (batches.labelled, batches.unlabelled))
    assert with_labels.documents[3].file == without.documents[3].file
    keys = {dataset.collate([dataset[0, 3]]).key for dataset in (with_labels, without)}
    assert len(keys) == 2


def test_a_second_draw_is_not_cut_to_the_regions_of_the_student(squares):
    """Two draws leave out patches independently of each other."""
    view = training_view(CONFIG, RECIPE)
    second = DocumentDataset(squares[0], None, view, seed=3, draw=1)
    batch = next(iter(DocumentLoader(dataset(squares, others=[second]), budget=10**6)))
    alone = next(iter(DocumentLoader(second, budget=10**6))).sequence
    assert torch.equal(batch.of_teachers[0].patches, alone.patches)
    assert same_regions(alone, batch.sequence).num_patches < alone.num_patches


def test_without_further_documents_there_are_labelled_ones_alone(corpus, page_cache):
    batches, left_out = prepared(corpus, page_cache)
    assert isinstance(batches, PairedBatches)
    assert left_out == ()
    assert all(batch.unlabelled is None for batch in batches)
    (facts,) = batches.describe().values()
    assert facts["documents"] == 12
    assert facts["teachers' views"][0] is None
    assert facts["teachers' views"][1]["rendering"]["multiple"] == 8
