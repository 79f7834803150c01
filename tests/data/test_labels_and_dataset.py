"""Labelled documents: what is read from folders and CSVs, what is wrong with them, and how they are seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CLASSES, classed_pdf
from PIL import Image

from docvit.data.augment import Augmentation
from docvit.data.dataset import DocumentDataset, View
from docvit.data.labels import DataError, LabelledDocuments, read_labelled
from docvit.data.loader import DocumentLoader
from docvit.data.sampling import balance
from docvit.documents.cache import PageCache
from docvit.documents.patches import pack
from docvit.documents.rendering import Rendering

RENDERING = Rendering(size=64, mode="L")


def write(path, content=b"%PDF-"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8)).save(path)


def table(tmp_path, text, *files, encoding="utf-8"):
    for name in files:
        write(tmp_path / name)
    file = tmp_path / "table.csv"
    file.write_text(text, encoding=encoding)
    return file


def names(found, root):
    return {
        (path.removeprefix(f"{root}/"), found.classes[label])
        for path, label in zip(found.paths, found.labels, strict=True)
    }


# --- reading ---


def test_a_folder_per_class(tmp_path):
    write(tmp_path / "b" / "1.pdf")
    write(tmp_path / "a" / "deep" / "2.pdf")
    write(tmp_path / "a" / "3.tif")
    write(tmp_path / ".hidden" / "4.pdf")
    write(tmp_path / "a" / "notes.txt")
    write(tmp_path / "loose.pdf")
    found = read_labelled(tmp_path)
    assert found.classes == ("a", "b")
    assert found.groups is None
    assert names(found, tmp_path) == {("a/deep/2.pdf", "a"), ("a/3.tif", "a"), ("b/1.pdf", "b")}


def test_a_class_folder_of_scans_is_many_documents_and_one_of_folders_a_document_each(tmp_path):
    for name in ("p1.png", "p2.png", "p10.png"):
        image(tmp_path / "scans" / name)
        image(tmp_path / "bundles" / "first" / name)
        image(tmp_path / "bundles" / "second" / name)
        image(tmp_path / "mixed" / "bundle" / name)
    write(tmp_path / "scans" / "notes.txt")
    image(tmp_path / "mixed" / "alone.jpg")
    assert names(read_labelled(tmp_path), tmp_path) == {
        ("scans/p1.png", "scans"),
        ("scans/p2.png", "scans"),
        ("scans/p10.png", "scans"),
        ("bundles/first", "bundles"),
        ("bundles/second", "bundles"),
        ("mixed/bundle", "mixed"),
        ("mixed/alone.jpg", "mixed"),
    }


def test_every_class_folder_without_documents_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "texts" / "notes.txt")
    write(tmp_path / "good" / "a.pdf")
    with pytest.raises(DataError) as raised:
        read_labelled(tmp_path)
    assert raised.value.problems == [
        "class folder without documents: empty",
        "class folder without documents: texts",
    ]


def test_a_document_without_its_group_is_said(tmp_path):
    file = table(tmp_path, "path,label,source\na.pdf,x,s\nb.pdf,x,\n", "a.pdf", "b.pdf")
    with pytest.raises(DataError, match="line 3: empty source"):
        read_labelled(file, group_column="source")


def test_a_csv_of_a_spreadsheet_with_its_byte_order_mark(tmp_path):
    text = 'label,path,source\nb,"deep/one, two.pdf",x\na,zwei.pdf,y\n'
    file = table(tmp_path, text, "deep/one, two.pdf", "zwei.pdf", encoding="utf-8-sig")
    found = read_labelled(file, group_column="source")
    assert names(found, tmp_path) == {("deep/one, two.pdf", "b"), ("zwei.pdf", "a")}
    assert found.groups == ("x", "y")


def test_paths_are_relative_to_the_csv_or_absolute(tmp_path, monkeypatch):
    elsewhere = write(tmp_path / "elsewhere" / "far.pdf")
    file = table(tmp_path, f"path,label\nnear.pdf,a\n{elsewhere},b\n", "near.pdf")
    monkeypatch.chdir(elsewhere.parent)
    assert read_labelled(file).paths == (str(tmp_path / "near.pdf"), str(elsewhere))


def test_all_problems_of_a_csv_are_said_at_once(tmp_path):
    lines = ["path,label", "a.pdf,x", "gone.pdf,x", "", "b.pdf,", ",x", "a.pdf,y", "./a.pdf,x", "b.pdf", "b.pdf,z"]
    with pytest.raises(DataError) as raised:
        read_labelled(table(tmp_path, "\n".join(lines), "a.pdf", "b.pdf"), classes=("x", "y"))
    assert raised.value.problems == [
        "line 3: no such file: gone.pdf (paths are relative to the CSV)",
        "line 5: empty path or label",
        "line 6: empty path or label",
        "line 7: a.pdf stands on line 2 already",
        "line 8: ./a.pdf stands on line 2 already",
        "line 9: empty path or label",
        "labels that the model does not know: z (it knows x, y)",
    ]
    assert all(problem in str(raised.value) for problem in raised.value.problems)


def test_a_long_list_of_problems_is_cut_in_the_message_only(tmp_path):
    rows = "".join(f"{i}.pdf,x\n" for i in range(100))
    with pytest.raises(DataError) as raised:
        read_labelled(table(tmp_path, "path,label\n" + rows))
    assert len(raised.value.problems) == 100
    assert "... and 80 more" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 22


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("file,class\na.pdf,x\n", ["missing column: path", "missing column: label"]),
        ("file;class\na.pdf;x\n", ["missing column: path (found: file, class)", "missing column: label"]),
        ("", ["missing column: path", "missing column: label"]),
        ("path,label\n", ["no documents"]),
        ("path,label\n" + "x" * 5000 + ",a\n", ["line 2: no such file"]),
    ],
)
def test_csvs_that_say_nothing_usable(tmp_path, text, problems):
    with pytest.raises(DataError) as raised:
        read_labelled(table(tmp_path, text))
    assert len(raised.value.problems) == len(problems)
    for said, expected in zip(raised.value.problems, problems, strict=True):
        assert said.startswith(expected)


def test_data_that_is_neither_folder_nor_csv(tmp_path):
    binary = write(tmp_path / "x.csv", bytes(range(128, 256)))
    for data, words in [(tmp_path / "gone", "no such file"), (binary, "not a CSV"), (tmp_path, "no documents")]:
        with pytest.raises(DataError, match=words):
            read_labelled(data)
    with pytest.raises(DataError, match="missing column: source"):
        read_labelled(table(tmp_path, "path,label\na.pdf,x\n", "a.pdf"), group_column="source")
    with pytest.raises(DataError, match="need a CSV"):
        read_labelled(tmp_path, group_column="source")


def test_balance_evens_out_classes_and_damps_prolific_groups():
    labels, groups = (0,) * 11 + (1,) * 2, ("big",) * 9 + ("a", "a") + ("b", "c")
    data = LabelledDocuments(("",) * 13, labels, ("x", "y"), groups)
    weights = balance(data)
    assert weights[:11].sum() == pytest.approx(weights[11:].sum())
    assert weights[:9].sum() / weights[9:11].sum() == pytest.approx(9**0.5 / 2**0.5)
    ungrouped = balance(LabelledDocuments(("",) * 13, labels, ("x", "y")))
    np.testing.assert_allclose(ungrouped, [1 / 11] * 11 + [1 / 2] * 2)


# --- how a document is seen ---


@pytest.fixture(scope="module")
def documents(corpus, page_cache):
    data = read_labelled(corpus)
    files, errors = PageCache(page_cache, RENDERING, words=True).prepare(data.paths, workers=0)
    assert not errors
    return data, [files[path] for path in data.paths]


def dataset(documents, seed=0, **view):
    data, files = documents
    return DocumentDataset(files, data.labels, View(RENDERING, **view), seed=seed)


def training(documents, seed=0, **view):
    settings = {"max_pages": 2, "augmentation": Augmentation(), "patch_dropout": 0.4, "training": True} | view
    return dataset(documents, seed, **settings)


def patches_of(batch):
    """What each document of a batch brings, by its index."""
    bounds = batch.sequence.page_bounds[batch.sequence.document_bounds].tolist()
    parts = zip(batch.index.tolist(), bounds, bounds[1:], strict=False)
    s = batch.sequence
    return {i: torch.cat([s.patches[a:b], s.page[a:b, None], s.row[a:b, None]], 1) for i, a, b in parts}


def test_outside_training_a_batch_is_what_pack_gives(documents, corpus):
    data, _ = documents
    batches = DocumentLoader(dataset(documents), budget=40)
    seen = []
    for batch in batches:
        for index, patches in patches_of(batch).items():
            expected = pack([_read(data.paths[index])], 16, channels=1)
            torch.testing.assert_close(patches[:, :256], expected.patches)
        seen += batch.index.tolist()
        assert batch.labels.tolist() == [data.labels[i] for i in batch.index.tolist()]
    assert seen == list(range(len(data)))
    assert {data.classes[label] for label in data.labels} == set(CLASSES)


def _read(path):
    from docvit.documents.pages import read_document

    return read_document(path, RENDERING)


def test_a_view_depends_on_seed_epoch_and_document_alone(documents):
    views = {}
    for budget in (30, 90):
        batches = DocumentLoader(training(documents), budget=budget, shuffle=True)
        batches.set_epoch(1)
        views[budget] = {k: v for batch in batches for k, v in patches_of(batch).items()}
    assert views[30].keys() == views[90].keys()
    assert all(torch.equal(views[30][k], views[90][k]) for k in views[30])
    for other in (training(documents, seed=1), training(documents)):
        batches = DocumentLoader(other, budget=90, shuffle=True)
        batches.set_epoch(2 if other.seed == 0 else 1)
        changed = {k: v for batch in batches for k, v in patches_of(batch).items()}
        assert all(not torch.equal(changed[k], views[90][k]) for k in changed)


def test_worker_processes_give_the_same_batches(documents):
    def run(workers):
        batches = DocumentLoader(training(documents), budget=60, shuffle=True, workers=workers)
        for epoch, skip in ((0, 0), (1, 2)):
            batches.set_epoch(epoch, skip)
            yield from batches

    for one, two in zip(run(0), run(2), strict=True):
        assert torch.equal(one.sequence.patches, two.sequence.patches)
        assert torch.equal(one.index, two.index)


def test_iterating_leaves_the_random_numbers_of_the_model_alone(documents):
    before = torch.get_rng_state()
    list(DocumentLoader(training(documents), budget=60, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_page_and_random_others_in_training_evenly_spread_ones_outside(documents):
    index = next(i for i, file in enumerate(documents[1]) if len(dataset(documents).documents[i].indices) == 3)
    chosen = {tuple(training(documents)[epoch, index][2].indices) for epoch in range(40)}
    assert chosen == {(0, 1), (0, 2)}
    assert training(documents, max_pages=1)[0, index][2].indices == [0]
    assert dataset(documents, max_pages=2)[7, index][2].indices == [0, 2]


def mixed(documents, groups=None, labelled=True, **view):
    data, files = documents
    settings = {"max_pages": 3, "mix_pages": 1.0, "training": True} | view
    return DocumentDataset(files, data.labels if labelled else None, View(RENDERING, **settings), groups=groups)


def test_later_pages_come_from_another_source_of_the_class(documents):
    data, _ = documents
    groups = [str(index % 2) for index in range(len(data))]
    own = training(documents, max_pages=3, patch_dropout=0.0, augmentation=None)
    mixing = mixed(documents, groups)
    several = 0
    for key in [(epoch, index) for epoch in range(3) for index in range(len(data))]:
        (_, _, before), (_, _, after) = own[key], mixing[key]
        partner = mixing.partner(*key)
        assert data.labels[partner] == data.labels[key[1]]
        assert groups[partner] != groups[key[1]]
        others = own[key[0], partner][2].pages
        expected = [before.pages[0], *others[1 : len(before.pages)]] if len(others) > 1 else before.pages
        assert all(np.array_equal(a, b) for a, b in zip(after.pages, expected, strict=True))
        assert after.indices == before.indices[: len(after.pages)]
        several += len(after.pages) > 1
    assert several


def test_pages_are_mixed_as_often_as_asked_and_without_labels_across_classes(documents):
    data, _ = documents
    keys = [(epoch, index) for epoch in range(30) for index in range(len(data))]
    some = mixed(documents, mix_pages=0.3)
    assert np.mean([some.partner(*key) is not None for key in keys]) == pytest.approx(0.3, abs=0.06)
    across = mixed(documents, labelled=False)
    assert {data.labels[across.partner(*key)] == data.labels[key[1]] for key in keys} == {True, False}
    assert all(mixed(documents, groups=["one"] * len(data)).partner(*key) is None for key in keys)
    assert mixed(documents, training=False).partners is None
    assert all(mixed(documents, max_pages=1).partner(*key) is None for key in keys)  # there are no later pages
    of_one, of_other = (DocumentLoader(mixed(documents, [str(i % n) for i in range(len(data))])) for n in (2, 3))
    assert of_one.fingerprint() != of_other.fingerprint()  # nothing is resumed with other partners


def test_patch_dropout_leaves_out_a_share_drawn_for_each_document(documents):
    whole = training(documents, patch_dropout=0.0, augmentation=None)
    thinned = training(documents, patch_dropout=0.4, augmentation=None)
    keys = [(epoch, index) for epoch in range(10) for index in range(len(whole))]
    counts = [d.collate([d[key] for key in keys]).sequence.num_patches for d in (whole, thinned)]
    assert counts[1] / counts[0] == pytest.approx(0.8, abs=0.03)  # a share between none and 0.4, drawn each time
    shares = [thinned.collate([thinned[key]]).sequence.num_patches for key in keys if key[1] == 0]
    assert max(shares) / min(shares) > 1.3


def test_the_estimate_of_tokens_is_about_right(documents):
    data = training(documents, augmentation=None)
    batches = [data.collate([data[epoch, index] for index in range(len(data))]) for epoch in range(10)]
    tokens = np.mean([batch.sequence.num_patches + batch.sequence.num_pages for batch in batches])
    assert data.tokens().sum() == pytest.approx(tokens, rel=0.05)


def test_a_batch_moves_as_a_whole(documents):
    data = dataset(documents)
    batch = data.collate([data[0, 0], data[0, 5]]).to("meta")
    assert {batch.sequence.patches.device.type, batch.labels.device.type, batch.index.device.type} == {"meta"}


def test_rgb_pages_and_normalisation_by_channel(tmp_path):
    path = write(tmp_path / "a.pdf", classed_pdf("blocks", 1))
    rendering, mean, std = Rendering(size=64), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    files, _ = PageCache(tmp_path, rendering).prepare([str(path)], workers=0)
    plain = View(rendering, mean, std)
    still = View(rendering, mean, std, augmentation=Augmentation(**dict.fromkeys(Augmentation().__dict__, 0.0)))
    one, two = (DocumentDataset(list(files.values()), [0], view) for view in (plain, still))
    a, b = one.collate([one[0, 0]]), two.collate([two[0, 0]])
    assert a.sequence.patches.shape[1] == 3 * 256
    torch.testing.assert_close(a.sequence.patches, b.sequence.patches, atol=2e-5, rtol=1e-4)
