"""States by name, projections that stay behind, and a classifier that is taken over."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY
from timm.optim import param_groups_weight_decay
from torch import nn

from docvit.documents.patches import pack
from docvit.model.config import DocViTConfig
from docvit.model.docvit import DocViT
from kd.config import DistillationError
from kd.student import Pair, StudentWithProjections, parse_pair, plain, reuse_classifier, with_projections

STUDENT = DocViTConfig(**TINY, num_classes=3)
TEACHER = DocViTConfig(**TINY | {"embed_dim": 48, "depth": 4}, num_classes=3)
COARSE = DocViTConfig(**TINY | {"patch_size": 32, "num_registers": 2}, num_classes=3)


def documents(patch_size=16):
    generator = torch.Generator().manual_seed(0)
    pages = [[torch.rand(1, 64, 64, generator=generator) for _ in range(count)] for count in (2, 1, 3)]
    return pack(pages, patch_size, channels=1, drop_blank=False)


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("pages", Pair("pages", "pages")),
        ("pages:", Pair("pages", "pages")),
        ("document", Pair("document", "document")),
        ("blocks.1", Pair("blocks.1", "blocks.1")),
        ("blocks.-1", Pair("blocks.1", "blocks.3")),
        ("blocks.0:blocks.-2", Pair("blocks.0", "blocks.2")),
        ("blocks.1:embed", Pair("blocks.1", "embed")),
    ],
)
def test_states_by_name(name, pair):
    found = parse_pair(name, STUDENT, TEACHER)
    assert found == pair
    batch = documents()
    ours, theirs = DocViT(STUDENT).forward_intermediates(batch), DocViT(TEACHER).forward_intermediates(batch)
    assert ours[found.student].shape[0] == theirs[found.teacher].shape[0]


@pytest.mark.parametrize("name", ["logits", "blocks.2", "blocks.-3", "blocks", "", "pages:odd"])
def test_states_that_are_not_there(name):
    with pytest.raises(DistillationError, match=r"choose pages, document, embed or blocks\.0 to blocks\.[13]"):
        parse_pair(name, STUDENT, TEACHER)


def test_states_that_cannot_be_alike():
    with pytest.raises(DistillationError, match="pages has one row per page, document one per document"):
        parse_pair("pages:document", STUDENT, TEACHER)
    with pytest.raises(DistillationError, match=r"patch_size 32 and 16, num_registers 2 and 0.*pages and document fit"):
        parse_pair("blocks.0", STUDENT, COARSE)
    assert parse_pair("pages", STUDENT, COARSE) == Pair("pages", "pages")


def test_a_student_learns_its_projections_and_decays_what_a_docvit_decays():
    learner = with_projections(DocViT(STUDENT), ["pages", "blocks.0"], DocViT(TEACHER))
    assert isinstance(learner, StudentWithProjections)
    assert [tuple(p.weight.shape) for p in learner.projections] == [(48, 32)] * 2
    spared, _ = param_groups_weight_decay(learner, 0.1, learner.no_weight_decay())
    student_spared, _ = param_groups_weight_decay(learner.student, 0.1, learner.student.no_weight_decay())
    assert len(spared["params"]) == len(student_spared["params"]) + 2  # the projections' biases


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_folded_head_is_projection_and_teachers_classifier(pooling):
    student = DocViT(DocViTConfig(**TINY, num_classes=3, pooling=pooling)).eval()
    teacher = DocViT(TEACHER).eval()
    nn.init.normal_(teacher.head.bias)
    reuse_classifier(student, teacher)
    batch = documents()
    with torch.no_grad():
        features = student.forward_features(batch)
        projected = student.head.projection(student.forward_head(features, pre_logits=True))
        expected = teacher.head(projected)
        folded = plain(student)
        torch.testing.assert_close(folded(batch), expected, atol=1e-5, rtol=1e-5)
        by_page = teacher.head(student.head.projection(features.pages))
        torch.testing.assert_close(folded.forward_pages(features), by_page, atol=1e-5, rtol=1e-5)
    assert isinstance(folded.head, nn.Linear)
    assert folded.state_dict().keys() == DocViT(student.config).state_dict().keys()


def test_a_borrowed_classifier_is_not_trained_and_not_the_teachers_own():
    student, teacher = DocViT(STUDENT), DocViT(TEACHER)
    reuse_classifier(student, teacher)
    student(documents()).sum().backward()
    assert all(p.grad is None for p in student.head.classifier.parameters())
    assert all(p.grad is not None for p in student.head.projection.parameters())
    assert student.head.classifier is not teacher.head
    assert teacher.head.weight.requires_grad


def test_a_plain_student_is_itself():
    student = DocViT(STUDENT)
    assert plain(student) is student
    with pytest.raises(DistillationError, match="no linear classifier"):
        reuse_classifier(student, DocViT(DocViTConfig(**TINY, num_classes=0)))
