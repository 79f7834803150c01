"""The engine against training loops written out by hand, bit by bit: one for images, one for documents."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TINY
from torch import nn

from docvit.data.labels import read_labelled
from docvit.documents.cache import PageCache
from docvit.training.distributed import Process
from docvit.training.ema import EMATeacher
from docvit.training.loop import TrainSettings
from docvit.training.recipe import Recipe, build_model
from kd.cifar10.batches import Augment, ImageLoader
from kd.cifar10.networks import StudentCNN, TeacherCNN
from kd.config import DistillConfig
from kd.distill import distill
from kd.documents.paired import paired_batches
from kd.documents.run import distill_documents

SETTINGS = TrainSettings(
    epochs=2, lr=1e-2, weight_decay=0.0, optimizer="adam", schedule="constant", warmup=0.0, clip=None, bf16=False
)


def assert_same(one, two):
    one, two = one.state_dict(), two.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def cnn(kind, seed):
    torch.manual_seed(seed)
    return kind(width=0.05)


def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (48, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageLoader(pixels, torch.arange(48) % 10, batch_size=16, shuffle=True, augment=Augment(cutout=8))


def soft_targets(student, teacher, t):
    # the sum that defines the Kullback-Leibler divergence: F.kl_div adds up in another order
    log_p, log_q = (teacher / t).log_softmax(1), (student / t).log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean() * t**2


def follow(average, model, step, decay):
    """An exponential moving average, weight by weight, with the warm-up of timm's `ModelEmaV3`."""
    d = 0.0 if step == 1 else min(decay, 1 - step ** (-2 / 3))
    with torch.no_grad():
        for a, value in zip(average.parameters(), model.parameters(), strict=True):
            a.lerp_(value, 1 - d)


@pytest.mark.parametrize("ramp_up", [0.0, 0.5])
@pytest.mark.parametrize("own_average", [False, True])
def test_images_are_distilled_as_by_a_loop_written_by_hand(own_average, ramp_up):
    student, teacher = cnn(StudentCNN, 0), cnn(TeacherCNN, 1)
    ours, average = copy.deepcopy(student), copy.deepcopy(student)
    optimizer, data, step = torch.optim.Adam(ours.parameters(), lr=1e-2), images(), 0
    for epoch in range(2):
        data.set_epoch(epoch)
        for batch in data:
            with torch.no_grad():
                theirs = (average if own_average else teacher)(batch.images)
            logits = ours(batch.images)
            hard = F.cross_entropy(logits, batch.labels)
            loss = (1 - 0.7) * hard + 0.7 * soft_targets(logits, theirs, 2.0)
            if ramp_up:
                share = math.exp(-5 * (1 - min(step / 6, ramp_up) / ramp_up) ** 2)
                loss = hard.lerp(loss, torch.tensor(share))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            follow(average, ours, step, 0.9)
    ema = EMATeacher(student, decay=0.9)
    frozen = ema if own_average else teacher
    terms = {"alpha": 0.7, "temperature": 2.0, "ramp_up": ramp_up}
    done = distill(student, frozen, images(), ema=ema, settings=SETTINGS, device="cpu", **terms)
    assert_same(student, ours)
    assert_same(done.student, average)


RECIPE = Recipe(
    model="docvit_small_patch16",
    settings=TINY,
    budget=60,
    ema=0.9,
    balanced=True,
    train=replace(SETTINGS, lr=1e-3),
)


def test_documents_are_distilled_as_by_a_loop_written_by_hand(corpus, page_cache, tmp_path):
    """Documents and pages, labels, soft targets and a feature; then fine-tuning on labels from the average."""
    data = read_labelled(corpus)
    wide = replace(RECIPE, settings=TINY | {"embed_dim": 48}, train=TrainSettings(seed=5))
    teacher = build_model(wide, CLASSES).eval()
    config = DistillConfig(alpha=0.3, page_alpha=0.6, temperature=2.0, features={"pages": 0.5}, fine_tune=1)
    done = distill_documents(RECIPE, teacher, data, tmp_path, config, device="cpu", workers=0)

    files, _ = PageCache(page_cache, teacher.config.rendering, words=True).prepare(data.paths, workers=0)
    student = build_model(RECIPE, CLASSES)
    projection = nn.Linear(32, 48)  # drawn after the student, as there
    ours, average = nn.ModuleList([student, projection]), None
    average = copy.deepcopy(ours)
    process = Process(torch.device("cpu"))
    data, _ = paired_batches(data, files, student.config, [teacher.config], RECIPE, process, workers=0)
    cross_entropy = partial(F.cross_entropy, label_smoothing=RECIPE.label_smoothing)

    def states(model, batch):
        features = model.forward_features(batch.sequence)
        return model.forward_head(features), model.forward_pages(features), features.pages

    optimizer, step = torch.optim.Adam(ours.parameters(), lr=1e-3), 0
    ours.train()
    for epoch in range(2):
        data.set_epoch(epoch)
        for batch in data:
            labels, of_pages = batch.labels, batch.labels[batch.sequence.document_of_page]
            with torch.no_grad():
                theirs, their_pages, their_states = states(teacher, batch)
            logits, pages, found = states(student, batch)
            loss = (1 - 0.3) * cross_entropy(logits, labels) + 0.3 * soft_targets(logits, theirs, 2.0)
            loss = loss + 0.5 * (1 - 0.6) * cross_entropy(pages, of_pages)
            loss = loss + 0.5 * 0.6 * soft_targets(pages, their_pages, 2.0)
            one, two = (F.normalize(x, dim=-1) for x in (projection(found), their_states))
            loss = loss + 0.5 * ((one - two).square().sum(-1).mean() / 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            follow(average, ours, step, 0.9)
    student.load_state_dict(average[0].state_dict())
    average, optimizer = copy.deepcopy(student), torch.optim.Adam(student.parameters(), lr=1e-4)
    data.set_epoch(2)
    for step, batch in enumerate(data, 1):
        logits, pages, _ = states(student, batch)
        of_pages = batch.labels[batch.sequence.document_of_page]
        optimizer.zero_grad()
        (cross_entropy(logits, batch.labels) + 0.5 * cross_entropy(pages, of_pages)).backward()
        optimizer.step()
        follow(average, student, step, 0.9)
    assert_same(done.student, average)
    assert all(parameter.requires_grad for parameter in done.student.parameters())
