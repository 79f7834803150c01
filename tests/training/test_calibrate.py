"""What a model takes to be known, and where it is unsure."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import CLASSES, worded_pdf
from sklearn.metrics import roc_auc_score

from docvit.data.labels import read_labelled
from docvit.errors import SettingError
from docvit.inference.classify import DocumentClassifier
from docvit.model.docvit import DocViT
from docvit.model.variants import create_model
from docvit.training.calibrate import KEPT, calibrate, calibrate_like
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe, build_model
from docvit.training.run_folder import read_recipe
from docvit.training.supervised import train_documents


def model_of(classes: int = 3) -> DocViT:
    names = tuple("abcdefgh"[:classes])
    return create_model("docvit_linear_patch32", num_classes=classes, classes=names, turns=False).eval()


def drawn(documents: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a model that is mostly right: the logit of the class is higher, by more or less."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (documents,), generator=random)
    logits = torch.randn(documents, 3, generator=random)
    logits[torch.arange(documents), labels] += 4 + 2 * torch.randn(documents, generator=random)
    return logits, labels


def test_a_model_that_was_never_calibrated_knows_everything_and_is_never_unsure():
    model = model_of()
    assert model.known(torch.randn(5, 3)).tolist() == [1.0] * 5
    assert model.config.min_score == 0.0


def test_unknown_documents_have_weak_logits():
    model = model_of()
    logits, labels = drawn(500)
    calibrate(model, logits, labels)
    unknown = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    known, other = model.known(drawn(500, seed=2)[0]), model.known(unknown)
    assert roc_auc_score([1] * 500 + [0] * 500, torch.cat([known, other])) > 0.85
    assert known.mean() > 0.7
    assert other.mean() < 0.5


def test_nearly_all_right_answers_are_kept():
    model = model_of()
    logits, labels = drawn(1000)
    calibrate(model, logits, labels)
    scores, predicted = logits.softmax(1).max(1)
    sure = scores * model.known(logits) >= model.config.min_score
    assert sure[predicted == labels].float().mean() == pytest.approx(KEPT, abs=0.002)
    assert sure[predicted != labels].float().mean() < 0.6


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 0]])
def test_what_cannot_be_learnt_is_not_set(labels):
    model = model_of()
    calibrate(model, -torch.eye(3) if len(set(labels)) > 1 else torch.eye(3), torch.tensor(labels))
    assert model.config.known == () or model.config.known[0] > 0
    if len(set(labels)) == 1:
        assert model.config.known == ()


def test_documents_without_words_have_thresholds_of_their_own(tmp_path):
    for kind in CLASSES:
        (tmp_path / kind).mkdir()
        for number in range(2):
            (tmp_path / kind / f"{number}.pdf").write_bytes(worded_pdf(kind, number, 1))
    data = read_labelled(tmp_path)
    recipe = Recipe(model="docvit_linear_patch32", settings={"words": 256}, train=TrainSettings(epochs=2, lr=0.01))
    model, _ = train_documents(data, tmp_path / "run", recipe, valid=data, device="cpu", workers=0)
    assert model.config.known_pixels != model.config.known
    classifier = DocumentClassifier(model)
    classifier.model.config = replace(model.config, min_score=1.1, min_score_pixels=0.0)
    with_words, by_pixels = (
        list(classifier.predict(data.paths[:3], words=words, workers=0)) for words in (True, False)
    )
    assert all(row.words_read and row.unsure for row in with_words)
    assert not any(row.unsure for row in by_pixels)
    classifier.model.config = replace(model.config, known=(0.0, 2.0), known_pixels=(0.0, -2.0))
    of_words, of_pixels = (
        [row.known for row in classifier.predict(data.paths[:3], words=words, workers=0)] for words in (True, False)
    )
    assert of_words == pytest.approx([torch.tensor(2.0).sigmoid().item()] * 3)
    assert of_pixels == pytest.approx([torch.tensor(-2.0).sigmoid().item()] * 3)


def test_thresholds_of_pixels_keep_the_right_answers_by_pixels():
    model = model_of()
    calibrate(model, *drawn(1000))
    logits, labels = drawn(1000, seed=3)
    weak = logits / 3
    calibrate(model, weak, labels, pixels=True)
    scores, predicted = weak.softmax(1).max(1)
    sure = scores * model.known(weak, pixels=True) >= model.config.min_score_pixels
    assert sure[predicted == labels].float().mean() == pytest.approx(KEPT, abs=0.002)
    assert model.config.calibration(pixels=True) != model.config.calibration()


def test_a_model_without_numbers_for_pixels_judges_all_documents_alike():
    model = model_of()
    calibrate(model, *drawn(200))
    assert model.config.calibration(pixels=True) == model.config.calibration()


def test_the_means_of_other_models_are_taken():
    one, two, model = model_of(), model_of(), model_of()
    for other, seed in ((one, 0), (two, 5)):
        calibrate(other, *drawn(300, seed))
        calibrate(other, *drawn(300, seed + 1), pixels=True)
    calibrate_like(model, [one, two])
    assert model.config.known == pytest.approx(np.mean([one.config.known, two.config.known], 0).tolist())
    assert model.config.min_score == pytest.approx((one.config.min_score + two.config.min_score) / 2)
    assert model.config.known_pixels == pytest.approx(
        np.mean([one.config.known_pixels, two.config.known_pixels], 0).tolist()
    )
    assert model.config.min_score_pixels == pytest.approx(
        (one.config.min_score_pixels + two.config.min_score_pixels) / 2
    )


def test_models_of_other_classes_or_without_held_out_data_say_nothing():
    other = model_of(2)
    with pytest.raises(SettingError, match="same classes"):
        calibrate_like(model_of(), [model_of()])
    calibrate(other, torch.eye(2).repeat(5, 1), torch.tensor([0, 1] * 5))
    with pytest.raises(SettingError, match="same classes"):
        calibrate_like(model_of(), [other])


def test_it_is_saved_with_the_model_and_goes_with_its_head(tmp_path):
    model = model_of()
    calibrate(model, *drawn(200))
    model.save_pretrained(tmp_path)
    again = DocViT.from_pretrained(tmp_path)
    assert again.config.known == model.config.known
    assert again.config.min_score == model.config.min_score > 0
    assert model.adapt(num_classes=5).config.known == ()
    assert model.adapt(page_embeddings=7).config.known == model.config.known
    model.reset_classifier(4)
    assert model.config.known == ()
    assert model.config.min_score == 0.0


def test_a_model_that_trains_on_is_not_calibrated_any_more(tmp_path):
    model = model_of()
    calibrate(model, *drawn(200))
    model.save_pretrained(tmp_path)
    going_on = build_model(Recipe(init=str(tmp_path)), model.config.classes)
    assert going_on.config.known == ()
    assert going_on.config.min_score == 0.0


def test_thresholds_that_cannot_be_taken_are_refused_before_training(corpus, tmp_path, trained, monkeypatch):
    monkeypatch.setattr("docvit.training.supervised.fit", lambda *_, **__: pytest.fail("it trained"))
    recipe = replace(read_recipe(trained), calibrated_like=[str(trained)])
    with pytest.raises(SettingError, match="held-out"):
        train_documents(read_labelled(corpus), tmp_path / "run", recipe, device="cpu", workers=0)


def test_an_interrupted_run_keeps_the_thresholds_that_it_was_begun_with(corpus, tmp_path, trained, monkeypatch):
    other = DocViT.from_pretrained(trained)
    calibrate(other, *drawn(200))
    other.save_pretrained(tmp_path / "other")
    begun = {"calibrated_like": [str(tmp_path / "other")], "train": TrainSettings(epochs=1)}
    train = partial(train_documents, read_labelled(corpus), tmp_path / "run", device="cpu", workers=0)
    with monkeypatch.context() as patch:
        patch.setattr("docvit.training.supervised.finish", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(replace(read_recipe(trained), **begun))
    model, _ = train(resume=True)
    assert model.config.known == other.config.known
    assert model.config.min_score == other.config.min_score > 0


def test_training_beside_held_out_documents_sets_both(corpus, tmp_path, trained):
    data = read_labelled(corpus)
    rest, held_out = data.only(data.paths[::2]), data.only(data.paths[1::2])
    recipe = replace(read_recipe(trained), train=TrainSettings(epochs=6, lr=3e-3))
    model, _ = train_documents(rest, tmp_path / "run", recipe, valid=held_out, device="cpu", workers=0)
    saved = DocViT.from_pretrained(tmp_path / "run")
    assert saved.config.known == model.config.known != ()
    assert DocViT.from_pretrained(trained).config.known == ()


def test_predictions_say_known_and_unsure(trained, corpus):
    model = DocViT.from_pretrained(trained)
    file = str(corpus / "bars" / "bars0.pdf")
    plain = DocumentClassifier(model, device="cpu")(file)
    assert plain.known == 1.0
    assert not plain.unsure
    model.config = model.config.from_dict({**model.config.as_dict(), "known": (0.0, 0.0), "min_score": 0.49})
    classifier = DocumentClassifier(model, device="cpu")
    found = classifier(file)
    assert found.known == 0.5
    assert found.score == plain.score
    assert found.unsure == (found.score * 0.5 < 0.49)
    assert classifier(file, min_score=0.0).unsure is False
    assert classifier(file, min_score=1.0).unsure is True
    assert [p.unsure for p in classifier.predict([file], min_score=1.0, workers=0)] == [True]
    assert found.as_dict()["known"] == 0.5
    assert "unsure" in found.as_dict()


def test_rows_say_unsure_and_what_they_would_say(trained, corpus, tmp_path, docvit):
    file = str(corpus / "bars" / "bars0.pdf")
    code, out, _ = docvit("classify", file, "--model", trained, "--min-score", "1")
    assert code == 0
    assert "unsure (bars ." in out
    code, out, _ = docvit("classify", file, "--model", trained, "--min-score", "0")
    assert code == 0
    assert "unsure" not in out


def test_evaluation_reports_unknown_documents(trained, corpus, tmp_path, docvit, make_pdf):
    make_pdf("other/letter.pdf")
    options = ("--model", trained, "--min-score", "1", "--format", "json", "--workers", "0")
    code, out, _ = docvit("evaluate", corpus, "--unknown", tmp_path / "other", *options)
    found = json.loads(out)
    assert code == 0
    assert found["coverage"] == 0.0
    assert found["unknown_unsure"] == 1.0
    assert found["known_auroc"] == 0.5  # this model knows everything
    assert found["accuracy_of_sure"] is None


def test_unknown_documents_are_judged_like_the_others_and_what_cannot_be_read_is_said(
    trained, corpus, tmp_path, docvit, make_pdf, monkeypatch
):
    make_pdf("other/letter.pdf")
    (tmp_path / "other" / "broken.pdf").write_bytes(b"%PDF-1.4")
    seen, predict = [], DocumentClassifier.predict

    def watched(self, data, **options):
        seen.append(options)
        return predict(self, data, **options)

    monkeypatch.setattr(DocumentClassifier, "predict", watched)
    options = ("--model", trained, "--strategy", "first", "--workers", "0")
    code, _, err = docvit("evaluate", corpus, "--unknown", tmp_path / "other", *options)
    assert code == 1
    assert "broken.pdf" in err
    assert [of["strategy"] for of in seen] == ["first", "first"]
    code, _, err = docvit("evaluate", corpus, "--unknown", tmp_path / "nowhere", *options)
    assert code == 2
    assert "none of the documents in --unknown" in err
