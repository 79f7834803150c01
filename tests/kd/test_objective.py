"""One step of the distillation loss, written out another way."""

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
from kd.config import DistillConfig
from kd.documents.outputs import DocumentTeacher, document_outputs
from kd.documents.paired import PairedBatch
from kd.losses import ramp_up, soft_loss
from kd.objective import DistillationLoss
from kd.student import Pair, StudentWithProjections, reuse_classifier
from kd.teacher import TeacherCache, ensemble_logits

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
    return PairedBatch(sequence, index % 3, index, **({"of_teachers": (None,)} | fields))


def loss_of(config, *teachers):
    given = replace(config, page_loss=RECIPE.page_loss, label_smoothing=RECIPE.label_smoothing)
    return DistillationLoss(given, DocumentTeacher(teachers), document_outputs)


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
    parts = loss_of(DistillConfig(alpha=0.3, page_alpha=0.6, temperature=2.0), teacher)(student, b, 0.0)
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
    parts = loss_of(DistillConfig(alpha=0.0), teacher)(student, b, 0.0)
    usual = classification_loss(RECIPE)(student, b, 0.0)
    assert torch.equal(parts["loss"], usual["loss"])
    assert torch.equal(parts["accuracy"], usual["accuracy"])
    assert asked == []


def test_features_are_compared_through_projections(student, teacher):
    b, pairs = batch(), [Pair("pages", "pages"), Pair("blocks.1", "blocks.2")]
    learner = StudentWithProjections(student, pairs, [(32, 48), (32, 48)])
    parts = loss_of(DistillConfig(alpha=0.0, features={"pages": 2.0, "blocks.-1": 0.5}), teacher)(learner, b, 0.0)
    ours, theirs = student.forward_intermediates(b.sequence), teacher.forward_intermediates(b.sequence)
    expected = classification_loss(RECIPE)(student, b, 0.0)["loss"]
    for projection, pair, weight in zip(learner.projections, pairs, (2.0, 0.5), strict=True):
        cosine = F.cosine_similarity(projection(ours[pair.student]), theirs[pair.teacher].detach(), dim=-1)
        expected = expected + weight * (1 - cosine).mean()
    torch.testing.assert_close(parts["loss"], expected)
    parts["loss"].backward()
    assert all(p.grad is not None for p in learner.projections.parameters())


def test_with_the_teachers_classifier_features_alone_are_learnt(student, teacher):
    b = batch()
    reuse_classifier(student, teacher)
    parts = loss_of(DistillConfig(simkd=True), teacher)(student, b, 0.0)
    ours, theirs = student.forward_intermediates(b.sequence), teacher.forward_intermediates(b.sequence)
    squares = [
        (student.head.projection(ours[name]) - theirs[name]).square().mean().item() for name in ("document", "pages")
    ]
    assert parts["loss"].item() == pytest.approx(squares[0] + 0.5 * squares[1], rel=1e-5)


def test_an_ensemble_is_the_mean_of_softened_probabilities(student, teacher):
    b = batch(of_teachers=(None, None))
    other = model(CONFIG, 7)
    found = (ensemble_logits(DocumentTeacher([teacher, other])(b, ["logits"]), "logits", 3.0) / 3).softmax(1)
    expected = np.mean([(logits_of(m, b.sequence)[0] / 3).softmax(1).numpy() for m in (teacher, other)], axis=0)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_a_teacher_with_its_own_view_is_asked_about_that(student, teacher):
    own = batch((1, 2, 2)).sequence
    found = DocumentTeacher([teacher])(batch(of_teachers=(own,)), ["logits"])
    assert torch.equal(found["0.logits"], logits_of(teacher, own)[0])


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("soft", ["soft-targets", "dkd", "dist"])
def test_documents_without_labels_bring_all_but_the_cross_entropy(student, teacher, soft, rising):
    """A teacher whose weight rises over half of the steps has only so much of it after a fifth of them."""
    config = DistillConfig(alpha=0.3, soft=soft, consistency=2.0, ramp_up=0.5 if rising else 0.0)
    unlabelled = replace(batch((1, 1, 2)), labels=torch.full((3,), -1))
    alone = loss_of(config, teacher)(student, batch(), 0.2)
    both = loss_of(config, teacher)(student, batch(unlabelled=unlabelled), 0.2)
    torch.testing.assert_close(both["loss"], alone["loss"] + both["unlabelled_loss"])
    assert torch.equal(both["hard_loss"], alone["hard_loss"])
    risen = ramp_up(20, 50) if rising else 1.0
    expected = 0.0
    pairs = zip(logits_of(student, unlabelled.sequence), logits_of(teacher, unlabelled.sequence), strict=True)
    for share, (ours, theirs) in zip((1.0, 0.5), pairs, strict=True):
        distance = F.mse_loss(ours.softmax(1), theirs.softmax(1))
        # without labels, the class that the teacher finds most probable is the target
        term = soft_loss(soft)(ours, theirs, torch.tensor(np.argmax(theirs.numpy(), axis=1)), 4.0)
        expected += share * risen * float(0.3 * term + 2.0 * distance)
    assert both["unlabelled_loss"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("progress", [0.1, 0.7])
def test_consistency_alone_needs_no_soft_targets(student, teacher, progress):
    """With alpha = 0 the labels keep their whole weight, and the teacher is asked all the same."""
    b, risen = batch(), ramp_up(progress, 0.5)
    parts = loss_of(DistillConfig(alpha=0.0, consistency=3.0, ramp_up=0.5), teacher)(student, b, progress)
    labels = classification_loss(RECIPE)(student, b, 0.0)["loss"]
    pairs = zip(logits_of(student, b.sequence), logits_of(teacher, b.sequence), strict=True)
    document, page = (F.mse_loss(ours.softmax(1), theirs.softmax(1)) for ours, theirs in pairs)
    torch.testing.assert_close(parts["loss"], labels + risen * 3 * (document + 0.5 * page))


def test_cached_outputs_are_those_of_the_teacher(student, teacher, tmp_path):
    cache, b, names = TeacherCache(tmp_path, {}), batch(key="0000-x"), ["logits", "page_logits"]
    first = DocumentTeacher([teacher], cache=cache)(b, names)
    held = replace(b, teacher_outputs=cache.read(b.key), of_teachers=())
    again = DocumentTeacher([model(WIDE, 2)], cache=cache)(held, names)
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
def test_an_impossible_config_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        DistillConfig(**settings)
