"""Pages that lie turned: learnt from pages that are turned on purpose, and turned back before they are judged."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import WORDS, worded_pdf

from docvit.data.augment import Augmentation
from docvit.data.labels import LabelledDocuments
from docvit.documents.cache import PageCache
from docvit.documents.pages import read_document
from docvit.inference.classify import DocumentClassifier
from docvit.inference.explain import explain
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.turns import DOWN, LEFT, RIGHT, UPRIGHT, TurnHead
from docvit.model.variants import create_model
from docvit.training import turns
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.turns import train_turns

STILL = Augmentation(shift=0.02, scale=0.02, stretch=0.01, rotate=0.0, shear=0.0, ink=0.1, contrast=0.1, scan=0.0)
RECIPE = Recipe(augmentation=STILL)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, page_cache):
    """A small model as it was drawn, and the documents that it can learn how pages lie from."""
    folder = tmp_path_factory.mktemp("turned")
    files = []
    for kind in WORDS:
        for n in range(6):
            files.append(folder / f"{kind}{n}.pdf")
            files[-1].write_bytes(worded_pdf(kind, n))
    paths = tuple(map(str, files))
    torch.manual_seed(0)
    classes = tuple(sorted(WORDS))
    model = create_model("docvit_linear_patch32", num_classes=3, classes=classes, words=64, page_size=128)
    pages, _ = PageCache(page_cache, model.config.rendering, words=True).prepare(paths, workers=0)
    data = LabelledDocuments(
        paths, tuple(n // 6 for n in range(18)), classes, groups=tuple(str(n % 6) for n in range(18))
    )
    return model, data, pages


@pytest.fixture(scope="module")
def trained(labelled) -> DocViT:
    """A small model that has seen pages turned; its other weights are as they were drawn."""
    drawn, data, pages = labelled
    model, before = deepcopy(drawn), drawn.state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "STEPS", 150)
        train_turns(model, data, pages, RECIPE, torch.device("cpu"))
    for name, value in model.state_dict().items():
        if not name.startswith("turns."):
            assert torch.equal(value, before[name]), name
    return model


def test_the_seed_alone_decides_what_is_learnt(labelled, monkeypatch):
    monkeypatch.setattr(turns, "STEPS", 1)
    monkeypatch.setattr(turns, "EPOCHS", 1)
    drawn, data, pages = labelled

    def learnt(seed, state_of_the_program):
        model = deepcopy(drawn)
        torch.manual_seed(state_of_the_program)
        recipe = replace(RECIPE, train=TrainSettings(seed=seed))
        train_turns(model, data.subset(range(0, 18, 3)), pages, recipe, torch.device("cpu"))
        return model.turns.state_dict()

    first, again, other = learnt(0, 1), learnt(0, 2), learnt(1, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("quarters", [UPRIGHT, RIGHT, DOWN, LEFT])
def test_a_sheet_that_lies_turned_is_judged_as_if_it_stood_upright(trained, tmp_path, quarters):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 9))
    classifier = DocumentClassifier(trained, device="cpu")
    upright = read_document(str(file), classifier.rendering, words=True)
    (expected,) = classifier.classify_pages([upright])
    (found,) = classifier.classify_pages([upright.turn([quarters] * 2)])
    assert [page.turned for page in found.pages] == [90 * quarters] * 2
    assert found.scores == expected.scores
    assert found.words_read == expected.words_read > 0


def test_only_the_page_that_lies_turned_is_turned(trained, tmp_path):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 9))
    classifier = DocumentClassifier(trained, device="cpu")
    stack = read_document(str(file), classifier.rendering, words=True).turn([UPRIGHT, RIGHT])
    (found,) = classifier.classify_pages([stack])
    assert [page.turned for page in found.pages] == [0, 90]


def test_of_a_batch_only_documents_with_turned_pages_are_judged_again(trained, tmp_path, monkeypatch):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 9))
    classifier = DocumentClassifier(trained, device="cpu")
    upright = read_document(str(file), classifier.rendering, words=True)
    pack, packed = trained.pack, []
    monkeypatch.setattr(trained, "pack", lambda stacks: packed.append(len(stacks)) or pack(stacks))
    rows = classifier.classify_pages([upright, upright.turn([RIGHT] * 2), upright])
    assert packed == [3, 1]
    assert [[page.turned for page in row.pages] for row in rows] == [[0, 0], [90, 90], [0, 0]]
    assert rows[1].scores == pytest.approx(rows[0].scores, abs=1e-5)


def untrained() -> TurnHead:
    return TurnHead(DocViTConfig(embed_dim=8, num_heads=1, patch_size=32, std=(0.25,)))


def test_what_is_measured_of_lines_changes_its_sign_on_a_page_that_is_turned_around(tmp_path):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 9, pages=1))
    model = create_model("docvit_linear_patch32", num_classes=2, page_size=256)
    page = read_document(str(file), model.config.rendering)
    batch = model.pack([page.turn([quarters]) for quarters in range(4)])
    upright, right, down, left = model.turns.see(torch.zeros(4, 0), batch)
    assert (upright.abs() > 1).float().mean() > 0.5
    assert torch.allclose(down, -upright, atol=1e-3)
    assert torch.allclose(left, -right, atol=1e-3)
    of_rows, of_columns = upright.chunk(2)
    assert torch.allclose(torch.cat([of_columns, -of_rows]), right, atol=1e-3)


def test_a_blank_page_has_no_lines_and_pages_do_not_depend_on_each_other(tmp_path):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 9, pages=1))
    model = create_model("docvit_linear_patch32", num_classes=2, page_size=128)
    written = read_document(str(file), model.config.rendering)
    blank = written._replace(pages=[np.full_like(written.pages[0], 255)])
    together = model.turns.see(torch.zeros(3, 0), model.pack([blank, written, blank]))
    assert not together[[0, 2]].any()
    assert torch.equal(together[1:2], model.turns.see(torch.zeros(1, 0), model.pack([written])))


def test_an_untrained_head_turns_nothing():
    head = untrained()
    assert not head.side.isfinite()
    assert head.decide(torch.tensor([[-9.0, 9, -9, -9]]), torch.tensor([0])).tolist() == [UPRIGHT]


def test_pages_of_a_document_are_judged_together_and_documents_apart():
    head = untrained()
    head.side.fill_(0.0)
    head.down.fill_(0.0)
    doubtful = [0.0, 0.1, 0.0, 0.0]  # by itself as good as nothing
    sure = [9.0, 0.0, 0.0, 0.0]
    logits = torch.tensor([sure, doubtful, sure, [0.0, 0.0, 9.0, 0.0], [0.0, 9.0, 0.0, 0.0]])
    assert head.decide(logits, torch.tensor([0, 0, 0, 1, 2])).tolist() == [UPRIGHT, UPRIGHT, UPRIGHT, DOWN, RIGHT]


def test_a_page_of_which_nothing_is_known_needs_more_than_even_odds():
    head = untrained()
    head.side.fill_(1.0)
    head.down.fill_(1.0)
    logits = torch.tensor([[0.0, 0.5, 0.0, 0.5], [0.0, 0.0, 0.9, 0.0]])
    assert head.decide(logits, torch.tensor([0, 1])).tolist() == [UPRIGHT, UPRIGHT]


def test_turning_a_page_turns_its_words_with_it(tmp_path):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 0, pages=1))
    stack = read_document(str(file), words=True)
    page, words = stack.pages[0], stack.words[0]
    height, width = page.shape[:2]
    for quarters in range(1, 4):
        turned = stack.turn([quarters])
        high, wide = turned.pages[0].shape[:2]
        for (left, top, right, bottom), box in zip(words.boxes, turned.words[0].boxes, strict=True):
            ink = page[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
            x0, y0, x1, y1 = box * [wide, high, wide, high]
            same = turned.pages[0][round(y0) : round(y1), round(x0) : round(x1)]
            assert np.array_equal(np.rot90(ink, -quarters), same)
    again = stack.turn([3]).turn([1])
    assert np.array_equal(again.pages[0], page)
    assert np.allclose(again.words[0].boxes, words.boxes, atol=1e-6)


def test_normalised_pages_are_turned_like_drawn_ones(tmp_path):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 0, pages=1))
    stack = read_document(str(file))
    tensors = stack._replace(pages=[torch.from_numpy(np.array(page)).permute(2, 0, 1) for page in stack.pages])
    assert np.array_equal(tensors.turn([1]).pages[0].permute(1, 2, 0).numpy(), stack.turn([1]).pages[0])


def test_with_one_group_nothing_is_known_of_unseen_pages_and_no_page_is_turned(trained, page_cache, tmp_path):
    file = tmp_path / "one.pdf"
    file.write_bytes(worded_pdf("text", 0))
    model = create_model("docvit_linear_patch32", num_classes=2, page_size=128)
    data = LabelledDocuments((str(file),), (0,), ("a", "b"), groups=("one",))
    pages, _ = PageCache(page_cache, model.config.rendering, words=True).prepare(data.paths, workers=0)
    train_turns(model, data, pages, RECIPE, torch.device("cpu"))
    assert not model.turns.side.isfinite()


def test_a_turned_page_is_explained_as_it_was_judged(trained, tmp_path):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 9))
    classifier = DocumentClassifier(trained, device="cpu")
    upright = read_document(str(file), classifier.rendering, words=True)
    shown = explain(classifier, upright.turn([RIGHT] * 2)).pages
    assert all(np.array_equal(one, two) for one, two in zip(shown, upright.pages, strict=True))


def test_clear_odds_are_enough_whatever_the_training_documents_hold(trained):
    assert trained.turns.side <= 3.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_in_another_precision_turns_pages_too(trained, tmp_path, dtype):
    file = tmp_path / "new.pdf"
    file.write_bytes(worded_pdf("text", 9))
    classifier = DocumentClassifier(deepcopy(trained).to(dtype), device="cpu")
    stack = read_document(str(file), classifier.rendering, words=True).turn([RIGHT] * 2)
    (found,) = classifier.classify_pages([stack])
    assert [page.turned for page in found.pages] == [90, 90]


def test_a_model_that_trains_on_turns_no_page_until_its_head_is_trained_again(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    going_on = build_model(Recipe(init=str(tmp_path)), trained.config.classes)
    assert trained.turns.side.isfinite()
    assert not going_on.turns.side.isfinite()
    assert torch.equal(going_on.head.weight, trained.head.weight)


def test_blank_pages_alone_say_nothing_of_how_pages_lie(make_pdf, page_cache):
    path = str(make_pdf("blank.pdf", contents=[b""]))
    model = create_model("docvit_linear_patch32", num_classes=2, page_size=128)
    pages, _ = PageCache(page_cache, model.config.rendering, words=True).prepare([path], workers=0)
    data = LabelledDocuments((path,), (0,), ("a", "b"))
    train_turns(model, data, pages, RECIPE, torch.device("cpu"))
    assert not model.turns.side.isfinite()
