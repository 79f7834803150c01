"""A teacher that sees the same images in every epoch is asked once: the same students as with a live one."""

from dataclasses import replace

import pytest
import torch
from test_cifar10_run import TINY, bench, longer, without_times

from docvit.training import loop as train
from kd.cifar10 import report
from kd.cifar10 import run as benchmarks
from kd.cifar10.batches import Augment
from kd.cifar10.networks import TeacherCNN
from kd.teacher import TeacherCache


@pytest.fixture(autouse=True)
def without_plots(monkeypatch):
    monkeypatch.setattr(report, "draw_figures", lambda *_: {})


# 30 images in batches of 10 or 12: of the latter an epoch leaves some out, and the last one has to be filled up
@pytest.mark.parametrize("batch_size", [10, 12])
def test_cached_logits_give_the_students_of_a_live_teacher_to_the_bit(tmp_path, monkeypatch, batch_size):
    preset = longer(replace(TINY, batch_size=batch_size, teacher_width=0.05), 2, checkpoint_minutes=60.0)
    cached = bench(tmp_path / "cached", preset, only=["alpha"])
    with monkeypatch.context() as patch:
        patch.setattr(benchmarks, "teacher_logits", lambda *_, **__: None)
        live = bench(tmp_path / "live", preset, only=["alpha"])
    assert without_times(cached.runs) == without_times(live.runs)
    assert cached.runs["students-seed0"]["networks"]["alpha 0.5"]["losses"][0]["soft"] > 0


def test_the_teacher_is_asked_in_batches_of_one_size(tmp_path, monkeypatch):
    """Kernels are chosen by the size of a batch: the last one is filled up, though 30 images are no multiple of 12."""
    sizes, network = [], TeacherCNN.forward
    monkeypatch.setattr(
        TeacherCNN, "forward", lambda self, images: (sizes.append(len(images)), network(self, images))[1]
    )
    preset = replace(TINY, batch_size=12)
    bench(tmp_path, preset, only=["teacher"])
    sizes.clear()
    bench(tmp_path, preset, only=["alpha"])
    assert set(sizes) == {12}


def images_seen_by_the_teacher(monkeypatch, run):
    """How many images the teacher's network is asked about in `run()`."""
    counts = []
    forward = TeacherCNN.forward
    with monkeypatch.context() as patch:
        patch.setattr(
            TeacherCNN, "forward", lambda self, images: (counts.append(len(images)), forward(self, images))[1]
        )
        run()
    return sum(counts)


def test_each_image_is_computed_once_and_read_back_after_an_interruption(tmp_path, monkeypatch):
    bench(tmp_path, longer(), only=["teacher"])
    probe = 2 * 10  # the first look at a batch, before training, does not ask the cache
    write, written = TeacherCache.write, []

    def stopping(self, key, outputs):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(key)
        write(self, key, outputs)

    with monkeypatch.context() as patch:
        patch.setattr(TeacherCache, "write", stopping)
        with pytest.raises(KeyboardInterrupt):
            bench(tmp_path, longer(), only=["alpha"])
    assert written == ["000000", "000010"]
    asked = images_seen_by_the_teacher(monkeypatch, lambda: bench(tmp_path, longer(), only=["alpha"]))
    assert asked <= 10 + probe  # in three epochs of 30 images


def test_with_augmentation_the_teacher_is_live(tmp_path, monkeypatch):
    preset = longer(replace(TINY, augment=Augment()))
    bench(tmp_path, preset, only=["teacher"])
    asked = images_seen_by_the_teacher(monkeypatch, lambda: bench(tmp_path, preset, only=["alpha"]))
    assert asked >= 3 * 30
    assert not list(tmp_path.rglob("logits"))


def test_logits_of_another_teacher_are_not_used(tmp_path):
    bench(tmp_path, only=["alpha"])
    (folder,) = tmp_path.rglob("logits")
    manifest = folder / "cache.json"
    manifest.write_text(manifest.read_text().replace('"teacher": "', '"teacher": "0'))
    (tmp_path / "results.json").write_text(
        (tmp_path / "results.json").read_text().replace('"students-seed0"', '"students-seed7"')
    )
    with pytest.raises(train.TrainingError, match="begun with other settings or data: teacher was"):
        bench(tmp_path, only=["alpha"])


def test_logits_do_not_depend_on_the_rest_of_the_batch():
    """What the cache rests on: with batches of one size, an image's logits are the same bits in whichever it is."""
    torch.manual_seed(0)
    teacher = TeacherCNN(width=0.1).eval().to(memory_format=torch.channels_last)
    images = torch.randn(60, 3, 32, 32).to(memory_format=torch.channels_last)
    order = torch.randperm(60)
    for bf16 in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            whole = torch.cat([teacher(part) for part in images.split(20)])
            mixed = torch.cat([teacher(images[index]) for index in order.split(20)])
        assert torch.equal(mixed, whole[order])
