"""One step of a lesson, written out another way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY

from docvit.documents.patches import pack
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from docvit.training.recipe import Recipe
from docvit.training.supervised import classification_loss
from kd.documents.paired import PairedBatch
from kd.documents.teacher_cache import TeacherCache
from kd.features import Pair, StudentWithProjections, reuse_classifier
from kd.losses import ramp_up
from kd.teaching import DocumentLesson, Guide, Teaching

RECIPE = Recipe(page_loss=0.5, label_smoothing=0.1)
CONFIG = DocViTConfig(**TINY, num_classes=3)
WIDE = replace(CONFIG, embed_dim=48, depth=3)


def model(config, seed):
    torch.manual_seed(seed)
    made = DocViT(config)
    torch.nn.init.normal_(made.head.weight)  # else all classes are alike
    return made


def batch(counts=(2, 1, 3), **fields):
    generator = torch.Generator().manual_seed(sum(counts))
    pages = [[torch.rand(1, 64, 48, generator=generator) for _ in range(count)] for count in counts]
    sequence = pack(pages, 16, channels=1, drop_blank=False)
    index = torch.arange(len(counts))
    return PairedBatch(sequence, index % 3, index, **({"views": (None,)} | fields))


def lesson(teaching, *teachers, pairs=(), recipe=RECIPE, cache=None, steps=100, own_average=False):
    guide = Guide(teachers, teaching.states(pairs, pages=bool(recipe.page_loss)), cache)
    return DocumentLesson(teaching, recipe, guide, steps=steps, own_average=own_average)


def kl(student, teacher, t):
    return t * t * F.kl_div((student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean")


@pytest.fixture
def student():
    return model(CONFIG, 0).eval()


@pytest.fixture
def teacher():
    return model(WIDE, 1)


def logits_of(network, sequence):
    with torch.no_grad():
        features = network.forward_features(sequence)
        return network.forward_head(features), network.forward_pages(features)


def test_the_loss_is_that_of_documents_and_of_their_pages(student, teacher):
    b = batch()
    parts = lesson(Teaching(alpha=0.3, page_alpha=0.6, temperature=2.0), teacher)(StudentWithProjections(student), b)
    (ours, our_pages), (theirs, their_pages) = (logits_of(m, b.sequence) for m in (student, teacher))
    page_labels = torch.tensor([0, 0, 1, 2, 2, 2])
    document = 0.7 * F.cross_entropy(ours, b.labels, label_smoothing=0.1) + 0.3 * kl(ours, theirs, 2)
    page = 0.4 * F.cross_entropy(our_pages, page_labels, label_smoothing=0.1) + 0.6 * kl(our_pages, their_pages, 2)
    torch.testing.assert_close(parts["loss"], document + 0.5 * page)
    parts["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_labels_alone_are_a_training_without_teachers_to_the_bit(student, teacher):
    b, asked = batch(), []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    parts = lesson(Teaching(alpha=0.0), teacher)(StudentWithProjections(student), b)
    usual = classification_loss(RECIPE)(student, b)
    assert torch.equal(parts["loss"], usual["loss"])
    assert torch.equal(parts["accuracy"], usual["accuracy"])
    assert asked == []


def test_features_are_compared_through_projections(student, teacher):
    b, pairs = batch(), [Pair("pages", "pages"), Pair("blocks.1", "blocks.2")]
    pupil = StudentWithProjections(student, pairs, teacher)
    teaching = Teaching(alpha=0.0, features={"pages": 2.0, "blocks.-1": 0.5})
    parts = lesson(teaching, teacher, pairs=pairs)(pupil, b)
    ours, theirs = student.forward_intermediates(b.sequence), teacher.forward_intermediates(b.sequence)
    expected = classification_loss(RECIPE)(student, b)["loss"]
    for projection, pair, weight in zip(pupil.projections, pairs, (2.0, 0.5), strict=True):
        cosine = F.cosine_similarity(projection(ours[pair.student]), theirs[pair.teacher].detach(), dim=-1)
        expected = expected + weight * (1 - cosine).mean()
    torch.testing.assert_close(parts["loss"], expected)
    parts["loss"].backward()
    assert all(p.grad is not None for p in pupil.projections.parameters())


def test_the_teachers_classifier_is_learnt_for_by_features_alone(student, teacher):
    b = batch()
    reuse_classifier(student, teacher)
    parts = lesson(Teaching(simkd=True), teacher)(StudentWithProjections(student), b)
    ours, theirs = student.forward_intermediates(b.sequence), teacher.forward_intermediates(b.sequence)
    squares = [
        (student.head.projection(ours[name]) - theirs[name]).square().mean().item() for name in ("document", "pages")
    ]
    assert parts["loss"].item() == pytest.approx(squares[0] + 0.5 * squares[1], rel=1e-5)


def test_an_ensemble_is_the_mean_of_softened_probabilities(student, teacher):
    b = batch(views=(None, None))
    other = model(CONFIG, 7)
    guide = lesson(Teaching(temperature=3.0), teacher, other).guide
    found = (guide.logits(guide(b), "logits", 3.0) / 3).softmax(1)
    expected = np.mean([(logits_of(m, b.sequence)[0] / 3).softmax(1).numpy() for m in (teacher, other)], axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_a_teacher_with_its_own_view_is_asked_about_that(student, teacher):
    own = batch((1, 2, 2)).sequence
    guide = lesson(Teaching(), teacher).guide
    assert torch.equal(guide(batch(views=(own,)))["0.logits"], logits_of(teacher, own)[0])


@pytest.mark.parametrize("own_average", [False, True])
@pytest.mark.parametrize("soft", ["soft-targets", "dkd", "dist"])
def test_documents_without_labels_bring_the_teachers_word_alone(student, teacher, soft, own_average):
    """A teacher that is the student's own average has only so much of its weight at step 20 of 50."""
    teaching, b = Teaching(alpha=0.3, soft=soft, consistency=2.0, ramp_up=0.5), batch(step=20)
    unlabelled = replace(batch((1, 1, 2)), labels=torch.full((3,), -1))
    alone = lesson(teaching, teacher, own_average=own_average)(StudentWithProjections(student), b)
    both = lesson(teaching, teacher, own_average=own_average)(
        StudentWithProjections(student), replace(b, unlabelled=unlabelled)
    )
    torch.testing.assert_close(both["loss"], alone["loss"] + both["unlabelled_loss"])
    assert torch.equal(both["hard_loss"], alone["hard_loss"])
    if soft == "soft-targets":
        risen, expected = ramp_up(20, 50) if own_average else 1.0, 0.0
        pairs = zip(logits_of(student, unlabelled.sequence), logits_of(teacher, unlabelled.sequence), strict=True)
        for share, (ours, theirs) in zip((1.0, 0.5), pairs, strict=True):
            distance = F.mse_loss(ours.softmax(1), theirs.softmax(1))
            expected += share * risen * float(0.3 * kl(ours, theirs, 4) + 2.0 * distance)
        assert both["unlabelled_loss"].item() == pytest.approx(expected, rel=1e-4)


def test_what_is_cached_is_what_was_said(student, teacher, tmp_path):
    cache, b = TeacherCache(tmp_path, {}), batch(key="0000-x")
    first = lesson(Teaching(), teacher, cache=cache).guide(b)
    again = lesson(Teaching(), model(WIDE, 2), cache=cache).guide(replace(b, told=cache.read(b.key), views=()))
    assert set(first) == {"0.logits", "0.page_logits"}
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 1.5}, "alpha must lie in 0..1"),
        ({"page_alpha": -0.1}, "alpha must lie in 0..1"),
        ({"temperature": 0.0}, "temperature"),
        ({"soft": "odd"}, "soft-targets, standardised, dkd, dist"),
        ({"distance": "odd"}, "cosine, mse, euclidean"),
        ({"features": {"pages": 0.0}}, "weights of features must be positive"),
        ({"consistency": -1.0}, "at least 0"),
        ({"fine_tune": -1}, "at least 0"),
        ({"simkd": True, "features": {"pages": 1.0}}, "simkd is a loss of its own"),
    ],
)
def test_impossible_teaching_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Teaching(**settings)
