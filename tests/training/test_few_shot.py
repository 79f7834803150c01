"""Own classes from a few examples: what the head is, what leaving out says, and what a fitted folder can do."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CLASSES, ENCRYPTED, TINY, classed_pdf, worded_pdf
from scipy import sparse
from sklearn.linear_model import LogisticRegression

import docvit
from docvit.data.labels import DataError, LabelledDocuments, read_labelled
from docvit.documents.pages import open_document
from docvit.documents.words import Words
from docvit.errors import SettingError
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.model.errors import ModelError
from docvit.training import few_shot
from docvit.training.few_shot import PIXELS, WORDS, Examples, fit_documents, fit_head
from docvit.training.loop import TrainingError
from docvit.training.recipe import Recipe, build_model

BUCKETS = 512


def model_of(words=BUCKETS):
    torch.manual_seed(0)
    model = DocViT(DocViTConfig(**TINY, words=words, num_classes=2)).eval()
    if words:
        torch.nn.init.normal_(model.words.to_pages.weight, std=0.1)
        model.words.set_frequencies(torch.arange(words) % 7, 10)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The folder of a model that was never trained; its features still differ between documents that differ."""
    folder = tmp_path_factory.mktemp("base")
    model_of().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder per class with three documents that have words."""
    folder = tmp_path_factory.mktemp("data")
    for kind in CLASSES:
        (folder / kind).mkdir()
        for i in range(3):
            (folder / kind / f"{kind}{i}.pdf").write_bytes(worded_pdf(kind, i))
    return folder


def only(data, *names):
    """The documents of `data` with these file names."""
    everything = read_labelled(data)
    return everything.only({path for path in everything.paths if path.rsplit("/", 1)[1] in names})


def fitting(data, output=None, **options):
    return fit_documents(data, output, device="cpu", workers=0, **options)


def test_a_model_of_nan_is_an_error_of_the_model(data, tmp_path):
    model = model_of()
    torch.nn.init.constant_(model.norm.bias, torch.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"gives no numbers \(NaN\)"):
        fitting(data, model=tmp_path)


def made_up(counts, views=2):
    """Examples of random features and words, so many of each class."""
    random = np.random.default_rng(1)
    labels = tuple(name for name, count in counts.items() for _ in range(count))
    n, width = len(labels), model_of().num_features
    shift = np.array([list(counts).index(label) for label in labels])[:, None, None]
    features = torch.tensor(random.normal(size=(n, views, width)) + 0.5 * shift, dtype=torch.float32)
    dense = random.random((n, BUCKETS)) * (random.random((n, BUCKETS)) < 0.05)
    words = sparse.csr_matrix((dense / np.linalg.norm(dense, axis=1, keepdims=True)).astype(np.float32))
    names = tuple(map(str, range(n)))
    return Examples(features, words, labels, names, names)


def logits_of(model, examples, view):
    """By the fitted head and table, of examples in one view."""
    direct = torch.from_numpy(examples.words @ model.words.of_documents.weight.detach().numpy())
    feature = torch.cat([examples.features[:, view], direct * (view == 0)], 1)
    return model.head(feature).detach().numpy()


def regression(examples, strength, kept):
    """Scikit-learn's on all features and all buckets side by side, and the rows of one view."""
    features = examples.features.double().numpy()
    mean = features[:, 0].mean(0)
    scale = np.sqrt((np.linalg.norm(features[:, 0] - mean, axis=1) ** 2).mean())
    words = examples.words.toarray().astype(float)
    learned = words @ model_of().words.embedding.weight.detach().double().numpy()
    learned /= np.sqrt((np.linalg.norm(learned, axis=1) ** 2).mean())
    of_words = np.hstack([WORDS * words, learned])
    rows = [np.hstack([(features[:, v] - mean) / scale, of_words * (v == 0)]) for v in (0, 1)]
    targets = examples.targets[kept]
    weight = 1 / np.bincount(targets)[targets]
    weight *= len(targets) / weight.sum()
    fitted = LogisticRegression(C=strength, tol=1e-9, max_iter=10_000).fit(
        np.concatenate([row[kept] for row in rows]), np.tile(targets, 2), np.concatenate([weight, PIXELS * weight])
    )
    return fitted, rows


@pytest.fixture
def fixed(monkeypatch):
    """One strength, and logits as they are."""
    monkeypatch.setattr(few_shot, "STRENGTHS", (3.0,))
    monkeypatch.setattr(few_shot, "SHARPNESS", (1.0,))


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize("counts", [{"a": 4, "b": 2, "c": 3}, {"a": 5, "b": 3}])
def test_the_head_is_a_logistic_regression_on_features_and_tf_idf(counts):
    examples = made_up(counts)
    model, _ = fit_head(model_of(), examples)
    assert model.config.classes == tuple(counts)
    expected, rows = regression(examples, 3.0, np.arange(len(examples)))
    for view in (0, 1):
        scores = torch.tensor(logits_of(model, examples, view)).softmax(1).numpy()
        np.testing.assert_allclose(scores, expected.predict_proba(rows[view]), atol=5e-3)


@pytest.mark.usefixtures("fixed")
def test_each_example_is_judged_by_the_others():
    examples = made_up({"a": 3, "b": 2, "c": 1})
    _, probabilities = fit_head(model_of(), examples)
    for i in range(5):
        expected, rows = regression(examples, 3.0, np.setdiff1d(np.arange(6), i))
        np.testing.assert_allclose(probabilities[i], expected.predict_proba(rows[0][i : i + 1])[0], atol=5e-3)
    assert np.isnan(probabilities[5]).all()


def test_documents_without_words_are_judged_by_examples_without_words(monkeypatch):
    judged = {}
    monkeypatch.setattr(few_shot, "calibrate", lambda model, logits, _, *, pixels: judged.update({pixels: logits}))
    examples = made_up({"a": 4, "b": 3})
    _, probabilities = fit_head(model_of(), examples)
    np.testing.assert_allclose(judged[False].softmax(1), probabilities)
    monkeypatch.setattr(few_shot, "STRENGTHS", (3.0,))
    monkeypatch.setattr(few_shot, "SHARPNESS", (1.0,))
    fit_head(model_of(), examples)
    expected, rows = regression(examples, 3.0, np.arange(1, 7))
    of_pixels = judged[True][0].softmax(0).numpy()
    np.testing.assert_allclose(of_pixels, expected.predict_proba(rows[1][:1])[0], atol=5e-3)


def test_strength_and_sharpness_are_those_that_are_best_for_what_was_left_out(monkeypatch):
    examples = made_up({"a": 6, "b": 6})
    monkeypatch.setattr(few_shot, "SHARPNESS", (0.5, 1.0, 2.0, 4.0))
    found = {}
    for strength in few_shot.STRENGTHS:
        for factor in few_shot.SHARPNESS:
            with monkeypatch.context() as patch:
                patch.setattr(few_shot, "STRENGTHS", (strength,))
                patch.setattr(few_shot, "SHARPNESS", (factor,))
                model, probabilities = fit_head(model_of(), examples)
            likelihood = np.log(probabilities[np.arange(12), examples.targets]).mean()
            found[likelihood] = probabilities, logits_of(model, examples, 0)
    model, probabilities = fit_head(model_of(), examples)
    np.testing.assert_allclose(probabilities, found[max(found)][0])
    np.testing.assert_allclose(logits_of(model, examples, 0), found[max(found)][1], atol=1e-4)
    assert len({round(value, 4) for value in found}) > 6


def test_many_examples_are_left_out_several_at_a_time(monkeypatch):
    monkeypatch.setattr(few_shot, "MAX_LEFT_OUT", 3)
    _, probabilities = fit_head(model_of(), made_up({"a": 6, "b": 2, "c": 1}))
    assert np.isfinite(probabilities[:8]).all()


def test_a_fitted_folder_is_a_model_like_any_other(base, data, tmp_path):
    model, report = fitting(data, tmp_path / "own", model=base)
    examples, loaded = Examples.load(tmp_path / "own"), DocViT.from_pretrained(tmp_path / "own")
    assert loaded.config.classes == report.classes == CLASSES
    for i, path in enumerate(examples.paths):
        with open_document(path) as document, torch.inference_mode():
            batch = loaded.pack([document])
            for view, seen in enumerate((batch, batch.without_words())):
                own = logits_of(model, examples, view)[i]
                np.testing.assert_allclose(loaded(seen)[0].numpy(), own, atol=0.02)
    predictions = list(docvit.DocumentClassifier(loaded, device="cpu").predict(examples.paths, workers=0))
    assert tuple(row.label for row in predictions) == examples.labels
    before = dict(model_of().named_parameters())
    for name, value in loaded.named_parameters():
        assert name.startswith(("head.", "words.of_documents.")) or torch.equal(value, before[name]), name


def test_the_stem_is_computed_once_for_both_views(base, data, monkeypatch):
    model, labelled = DocViT.from_pretrained(base), read_labelled(data)
    seen, original = [], DocViT.forward_stem
    monkeypatch.setattr(DocViT, "forward_stem", lambda m, batch: seen.append(batch.num_documents) or original(m, batch))
    fitting(labelled, model=base)
    assert sum(seen) == len(labelled)
    with open_document(labelled.paths[0]) as document, torch.inference_mode():
        batch = model.pack([document])
        for view in (batch, batch.without_words()):
            found = model.forward_features(view, model.forward_stem(batch)).pages
            assert torch.equal(found, model.forward_features(view).pages)


def test_training_goes_on_from_a_fitted_folder(base, data, tmp_path):
    model, _ = fitting(data, tmp_path / "own", model=base)
    going_on = build_model(Recipe(init=str(tmp_path / "own")), CLASSES)
    assert torch.equal(going_on.head.weight, model.head.weight)
    assert torch.equal(going_on.words.of_documents.weight, model.words.of_documents.weight)
    other = build_model(Recipe(init=str(tmp_path / "own")), ("x", "y"))
    assert other.config.document_words == 0
    assert torch.equal(other.words.embedding.weight, model.words.embedding.weight)
    assert build_model(Recipe(init=str(tmp_path / "own"), settings={"words": 0}), CLASSES).words is None


def test_adding_gives_what_all_at_once_gives(base, data, tmp_path):
    first = only(data, "bars0.pdf", "bars1.pdf", "text0.pdf", "text1.pdf")
    fitting(first, tmp_path / "own", model=base)
    rest = only(data, "bars2.pdf", "text2.pdf", "blocks0.pdf", "blocks1.pdf", "blocks2.pdf")
    added, report = fitting(rest, tmp_path / "own", add=True)
    at_once, expected = fitting(data, model=base)
    assert report.classes == CLASSES
    order = [report.paths.index(path) for path in expected.paths]
    np.testing.assert_allclose(report.probabilities[order], expected.probabilities, atol=0.02)
    torch.testing.assert_close(added.head.weight, at_once.head.weight, atol=0.02, rtol=0.02)
    assert len(Examples.load(tmp_path / "own")) == 9


def test_a_document_that_is_added_again_gets_its_new_label(base, data, tmp_path):
    fitting(only(data, "bars0.pdf", "text0.pdf"), tmp_path / "own", model=base)
    (tmp_path / "copy.pdf").write_bytes(worded_pdf("bars", 0))
    (tmp_path / "corrected.csv").write_text(f"path,label\ncopy.pdf,text\n{data}/bars/bars1.pdf,bars\n")
    fitting(tmp_path / "corrected.csv", tmp_path / "own", add=True)
    examples = Examples.load(tmp_path / "own")
    assert sorted(examples.labels) == ["bars", "text", "text"]
    assert examples.labels[examples.paths.index(str(tmp_path / "copy.pdf"))] == "text"


def test_what_is_mislabelled_is_named(base, data):
    labelled = read_labelled(data)
    wrong = labelled.paths.index(f"{data}/text/text1.pdf")
    labels = tuple(CLASSES.index("bars") if i == wrong else label for i, label in enumerate(labelled.labels))
    _, report = fitting(LabelledDocuments(labelled.paths, labels, CLASSES), model=base)
    path, label, other, score = report.doubtful(0.4)[0]
    assert (path, label, other) == (labelled.paths[wrong], "bars", "text")
    assert 0.4 <= score <= 1
    assert not report.doubtful(1.0)
    count, right, score = report.of_class("bars")
    assert (count, right) == (4, 0.75)
    own = [row[0] for row, name in zip(report.probabilities, report.labels, strict=True) if name == "bars"]
    assert score == pytest.approx(np.mean(own))


def test_one_example_of_each_is_enough(base, data):
    classifier = docvit.fit(only(data, *(f"{kind}0.pdf" for kind in CLASSES)), model=base, device="cpu", workers=0)
    assert [classifier(f"{data}/{kind}/{kind}1.pdf").label for kind in CLASSES] == list(CLASSES)


def test_a_model_of_pixels_alone(corpus, tmp_path):
    model_of(words=0).save_pretrained(tmp_path / "base")
    model, report = fitting(corpus, tmp_path / "own", model=tmp_path / "base")
    assert model.words is None
    assert np.nanmean([report.of_class(name)[1] for name in CLASSES]) > 0.8
    fitting(corpus, tmp_path / "own", add=True)
    assert len(Examples.load(tmp_path / "own")) == 12


def test_wrong_data_is_one_clear_error(base, data, tmp_path):
    with pytest.raises(DataError, match="at least two classes, found: bars"):
        fitting(only(data, "bars0.pdf", "bars1.pdf"), model=base)
    copies = tmp_path / "copies"
    for kind in ("a", "b"):
        (copies / kind).mkdir(parents=True)
        (copies / kind / "x.pdf").write_bytes(classed_pdf("bars"))
    with pytest.raises(DataError, match="one document under two labels"):
        fitting(copies, model=base)
    (copies / "b" / "x.pdf").write_bytes(classed_pdf("text"))
    (copies / "b" / "y.pdf").write_bytes(b"%PDF-1.4 broken")
    with pytest.raises(DataError, match=r"Unreadable: .*y\.pdf"):
        fitting(copies, model=base)
    _, report = fitting(copies, model=base, skip_unreadable=True)
    assert report.paths == (str(copies / "a" / "x.pdf"), str(copies / "b" / "x.pdf"))


@pytest.mark.parametrize("skip_unreadable", [False, True])
def test_a_password_opens_examples(base, data, tmp_path, skip_unreadable):
    (tmp_path / "locked.pdf").write_bytes(ENCRYPTED)
    (tmp_path / "table.csv").write_text(f"path,label\nlocked.pdf,text\n{data}/bars/bars1.pdf,bars\n")
    opening = {"cache": tmp_path / "cache", "password": "secret", "skip_unreadable": skip_unreadable}
    _, report = fitting(tmp_path / "table.csv", model=base, **opening)
    assert report.paths == (f"{tmp_path}/locked.pdf", f"{data}/bars/bars1.pdf")


def test_scans_are_read_by_ocr_where_it_is_asked_for(base, corpus, tmp_path, monkeypatch, caplog):
    found = Words(("total",), np.array([[0.1, 0.1, 0.2, 0.2]], np.float32), "ocr")
    monkeypatch.setattr("docvit.documents.workers.require_ocr", lambda: None)
    monkeypatch.setattr("docvit.documents.pages.ocr_words", lambda page: found)
    for name, options, read in (("without", {}, 0), ("with", {"ocr_pages": 1}, 12)):
        fitting(corpus, tmp_path / name, model=base, cache=tmp_path / f"{name} pages", **options)
        assert (Examples.load(tmp_path / name).words.getnnz(1) > 0).sum() == read
    model_of(words=0).save_pretrained(tmp_path / "pixels")
    fitting(corpus, model=tmp_path / "pixels", ocr_pages=1)
    assert "given no words: nothing is read by OCR" in caplog.text


def test_where_nothing_can_be_added(base, data, tmp_path):
    with pytest.raises(TrainingError, match="already holds"):
        fitting(data, base, model=base)
    with pytest.raises(ModelError, match=r"holds no examples\.safetensors"):
        fitting(data, base, add=True)
    with pytest.raises(SettingError, match="name no other"):
        fitting(data, base, add=True, model=base)
    with pytest.raises(SettingError, match="name it as output"):
        fitting(data, add=True)
    fitting(only(data, "bars0.pdf", "text0.pdf"), tmp_path / "own", model=base)
    file = tmp_path / "own" / few_shot.EXAMPLES
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match="damaged"):
        fitting(data, tmp_path / "own", add=True)


def test_the_folder_holds_no_pickle(base, data, tmp_path):
    fitting(only(data, "bars0.pdf", "text0.pdf"), tmp_path / "own", model=base)
    assert {file.suffix for file in (tmp_path / "own").iterdir()} == {".json", ".safetensors"}
    assert json.loads((tmp_path / "own" / "config.json").read_text())["document_words"] == 2


def test_own_classes_are_known_and_others_are_not(corpus, trained, tmp_path):
    kept = ("bars", "blocks")
    data = read_labelled(corpus)
    mine = data.only([path for path, label in zip(data.paths, data.labels, strict=True) if data.classes[label] in kept])
    model, _ = fit_documents(mine, model=trained, device="cpu", workers=0)
    assert len(model.config.known) == 2
    assert 0 < model.config.min_score < 1
    rows = list(docvit.DocumentClassifier(model, device="cpu").predict(data.paths, workers=0))
    known = {kind: np.mean([row.known for row in rows if f"/{kind}/" in row.path]) for kind in (*kept, "text")}
    assert known["text"] < min(known["bars"], known["blocks"])


def test_one_example_of_each_class_says_nothing_of_what_is_known(corpus, trained):
    data = read_labelled(corpus)
    first = data.only([data.paths[data.labels.index(label)] for label in range(3)])
    model, _ = fit_documents(first, model=trained, device="cpu", workers=0)
    assert model.config.known == ()
    assert model.config.min_score == 0.0


def test_what_an_earlier_fit_knew_is_forgotten():
    examples = made_up({"a": 1, "b": 1})
    earlier, _ = fit_head(model_of(), examples)
    earlier.config = replace(earlier.config, known=(1.0, 0.0), min_score=0.5)
    again, _ = fit_head(earlier, examples)
    assert again.config.known == ()
    assert again.config.min_score == 0.0


def test_examples_that_all_look_alike_are_refused(trained, make_pdf):
    blank = [
        make_pdf(f"{kind}/{n}.pdf", [(612, 792)], contents=[f"% {kind}{n}".encode()]) for kind in "ab" for n in (1, 2)
    ]
    with pytest.raises(DataError, match="look alike"):
        fit_documents(blank[0].parent.parent, model=trained, device="cpu", workers=0)
