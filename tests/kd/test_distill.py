"""Distillation: the teacher stays as it is, runs resume exactly, a sweep is its members alone, misfits are refused."""

import copy
import math
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from docvit.training.ema import EMATeacher
from docvit.training.loop import CHECKPOINT, TrainingError, TrainSettings
from kd.cifar10.batches import Augment, ImageLoader
from kd.config import HARD_TARGETS, DistillationError, DistillConfig
from kd.distill import AT_CHANCE, chance_warnings, distill, train_networks
from kd.objective import DistillationLoss
from kd.sweep import Sweep, measure
from kd.teacher import Teacher

SETTINGS = TrainSettings(
    epochs=3, lr=1e-2, weight_decay=0.0, optimizer="adam", schedule="constant", warmup=0.0, clip=None, bf16=False
)


def coloured(count=48, seed=0):
    """Images whose class shows in their colour."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    colours = torch.randint(256, (10, 3, 1, 1), generator=torch.Generator().manual_seed(1))
    noise = torch.randint(-20, 20, (count, 3, 32, 32), generator=generator)
    return (colours[labels] + noise).clamp(0, 255).to(torch.uint8), labels


def batches(**settings):
    return ImageLoader(*coloured(), **({"batch_size": 16, "shuffle": True, "augment": Augment()} | settings))


def net(seed=0, classes=10, width=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, width), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(width, classes),
        )  # fmt: skip


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Both(nn.Module):
    """A student that carries its teacher inside, as wrappers do."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, inputs):
        return self.student(inputs)


def test_the_teacher_is_frozen_and_in_eval_whatever_its_owner_does():
    teacher = net(1)
    before, expected = weights(teacher), None
    seen = []
    teacher.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    both = Both(net(), teacher)  # the loop puts this whole module in training mode every epoch
    distill(both, teacher, batches(), settings=replace(SETTINGS, weight_decay=0.1), device="cpu")
    assert equal(weights(teacher), before)
    assert set(seen) == {(False, False)}
    frozen = Teacher(teacher)
    nn.ModuleList([frozen]).train()
    expected = frozen(batches()[0], ["logits"])["0.logits"]
    teacher.train()
    assert torch.equal(frozen(batches()[0], ["logits"])["0.logits"], expected)
    assert not expected.requires_grad


def test_the_loss_is_the_written_out_mixture_and_reaches_the_student_alone():
    student, teacher = net().eval(), net(1).eval()
    batch = batches()[0]
    parts = DistillationLoss(DistillConfig(alpha=0.3, temperature=2.0), Teacher(teacher))(student, batch, 0.0)
    ours, theirs = student(batch.images), teacher(batch.images)
    soft = 4 * F.kl_div((ours / 2).log_softmax(1), (theirs / 2).softmax(1), reduction="batchmean")
    expected = 0.7 * F.cross_entropy(ours, batch.labels) + 0.3 * soft
    torch.testing.assert_close(parts["loss"], expected)
    parts["loss"].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_without_soft_targets_the_teacher_is_never_asked_while_training():
    asked = []
    teacher = net(1)
    teacher.register_forward_hook(lambda *_: asked.append(1))
    DistillationLoss(HARD_TARGETS, Teacher(teacher))(net(), batches()[0], 0.0)
    assert asked == []


def test_a_student_learns_from_soft_targets_alone():
    teacher = net(1, width=32)
    evaluate = partial(measure, batches=batches(augment=None))
    settings = replace(SETTINGS, epochs=12, lr=3e-2)
    train_networks(teacher, None, batches(), HARD_TARGETS, settings, evaluate=evaluate)
    student = net(2, width=32)
    result = distill(student, teacher, batches(), alpha=1.0, settings=settings, evaluate=evaluate, device="cpu")
    assert result.student is student
    assert not student.training
    assert result.comparison["teacher"]["accuracy"] > 0.7
    assert result.comparison["student"]["accuracy"] > 0.5  # chance is 0.1, and it has never seen a label
    assert result.comparison["student"] == evaluate(student)
    assert result.history[-1]["soft_loss"] < result.history[0]["soft_loss"]


class Stops(Exception):
    pass


def interrupt_after(data, step):
    """Batches that break off in the middle of an epoch, at a step of the whole run, as a pulled plug would."""

    class Interrupted(ImageLoader):
        left = step

        def __iter__(self):
            for batch in super().__iter__():
                if self.left == 0:
                    raise Stops
                self.left -= 1
                yield batch

    data.__class__ = Interrupted
    return data


@pytest.mark.parametrize(("ema", "ramp_up"), [(None, 0.0), (0.9, 0.5)])
@pytest.mark.parametrize("step", [2, 5, 9, 11])
def test_interrupted_is_uninterrupted(tmp_path, step, ema, ramp_up):
    """Three epochs of distillation and two of fine-tuning; stopped early, late, between them, and in the second."""
    settings = replace(SETTINGS, checkpoint_minutes=0.0)
    arguments = {"fine_tune": 2, "ema": ema, "ramp_up": ramp_up, "settings": settings, "device": "cpu"}
    whole = distill(net(), net(1), batches(), **arguments, output=tmp_path / "whole")
    # the first look at the data, before training, takes a batch as well
    with pytest.raises(Stops):
        distill(
            net(), net(1), interrupt_after(batches(), step + 2), **arguments, output=tmp_path / "parts"
        )  # fmt: skip
    resumed = distill(net(), net(1), batches(), **arguments, output=tmp_path / "parts", resume=True)
    assert equal(weights(resumed.student), weights(whole.student))
    for stage in ("history", "fine_tuning"):
        drop = [{k: v for k, v in record.items() if k != "seconds"} for record in getattr(whole, stage)]
        assert drop == [{k: v for k, v in record.items() if k != "seconds"} for record in getattr(resumed, stage)]


def test_fine_tuning_goes_on_in_later_epochs_on_labels_alone(tmp_path):
    data, seen = batches(), []
    set_epoch = data.set_epoch
    data.set_epoch = lambda epoch, skip=0: (seen.append(epoch), set_epoch(epoch, skip))[1]
    result = distill(net(), net(1), data, fine_tune=2, settings=SETTINGS, device="cpu", output=tmp_path)
    assert [epoch for n, epoch in enumerate(seen) if n == 0 or epoch != seen[n - 1]][-5:] == [0, 1, 2, 3, 4]
    assert all("soft_loss" not in record for record in result.fine_tuning)
    assert all(record["soft_loss"] > 0 for record in result.history)
    assert result.fine_tuning[0]["lr"] == pytest.approx(SETTINGS.lr / 10)


def test_fine_tuning_goes_on_from_the_average(tmp_path):
    student, data = net(), batches()
    average, begun = EMATeacher(student, decay=0.9), {}
    set_epoch = data.set_epoch

    def watched(epoch, skip=0):
        if epoch == SETTINGS.epochs:
            begun.update(student=weights(student), average=weights(average.module))
        set_epoch(epoch, skip)

    data.set_epoch = watched
    once = distill(net(), net(1), batches(), ema=0.9, settings=SETTINGS, device="cpu")
    tuned = distill(student, net(1), data, ema=average, fine_tune=1, settings=SETTINGS, device="cpu")
    assert equal(begun["student"], weights(once.student))
    assert equal(begun["average"], weights(once.student))
    assert tuned.student is average.module
    assert not equal(weights(tuned.student), weights(once.student))


def test_a_run_is_not_overwritten(tmp_path):
    arguments = {"settings": SETTINGS, "device": "cpu", "output": tmp_path}
    distill(net(), net(1), batches(), **arguments)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match="already holds a run"):
        distill(net(), net(1), batches(), **arguments)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_device_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no device 'nowhere'"):
        distill(net(), net(1), batches(), settings=SETTINGS, device="nowhere", output=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_resumed_under_other_settings(tmp_path):
    arguments = {"settings": SETTINGS, "device": "cpu", "output": tmp_path}
    distill(net(), net(1), batches(), alpha=0.3, **arguments)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match=r"alpha was 0\.3"):
        distill(net(), net(1), batches(), alpha=0.4, resume=True, **arguments)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def plain(seed=0):
    """A network without dropout, which would draw other numbers beside a second network."""
    return nn.Sequential(*[module for module in net(seed) if not isinstance(module, nn.Dropout)])


@pytest.mark.parametrize("distilled", [True, False])
def test_a_sweep_is_its_networks_trained_alone_to_the_bit(distilled):
    targets = {"alone": HARD_TARGETS, "alpha 0.5": DistillConfig(), "dkd": DistillConfig(alpha=0.8, soft="dkd")}
    if not distilled:
        targets = {"one": HARD_TARGETS, "smooth": DistillConfig(alpha=0.0, label_smoothing=0.1)}
    sweep = Sweep({name: plain() for name in targets})
    average = EMATeacher(sweep, decay=0.9)
    together = train_networks(sweep, Teacher(net(1)), batches(), targets, SETTINGS, ema=average)
    for name, mixed in targets.items():
        alone = plain()
        own_average = EMATeacher(alone, decay=0.9)
        history = train_networks(alone, Teacher(net(1)), batches(), mixed, SETTINGS, ema=own_average)
        assert equal(weights(sweep[name]), weights(alone))
        assert equal(weights(average.module[name]), weights(own_average.module))
        assert [record[f"{name}/hard_loss"] for record in together] == [record["hard_loss"] for record in history]


def test_all_networks_see_the_same_view():
    seen = {"teacher": [], "one": [], "two": []}
    networks = {name: plain() for name in seen}
    for name, network in networks.items():
        network.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    sweep = Sweep({name: networks[name] for name in ("one", "two")})
    loss = DistillationLoss({"one": DistillConfig(), "two": DistillConfig()}, Teacher(networks["teacher"]))
    loss(sweep, batches()[0], 0.0)
    assert seen["teacher"][0] is seen["one"][0] is seen["two"][0]


def test_a_sweep_is_not_clipped_together():
    sweep = Sweep({"a": net(), "b": net()})
    with pytest.raises(DistillationError, match="clip"):
        train_networks(sweep, None, batches(), {"a": HARD_TARGETS, "b": HARD_TARGETS}, replace(SETTINGS, clip=1.0))


def test_a_sweep_measures_as_its_networks_do():
    sweep = Sweep({"a": net(1), "alpha 0.5": net(2)})
    found = measure(sweep, batches())
    assert found == {f"{name}/{key}": v for name in sweep.names for key, v in measure(sweep[name], batches()).items()}
    _, labels = coloured()
    logits = net(1).eval()(batches(augment=None, shuffle=False, batch_size=48)[0].images).detach()
    alone = measure(net(1), batches(augment=None), bf16=False)
    assert alone["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert alone["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_measuring_is_where_the_model_is():
    there = measure(net().cuda(), batches(), bf16=False)
    assert there == pytest.approx(measure(net(), batches(), bf16=False), rel=1e-3)


def test_measuring_leaves_every_module_in_its_own_mode():
    network = net().train()
    network[3].eval()
    measure(network, batches())
    assert [module.training for module in network] == [True, True, True, False, True, True, True]


def without_noise():
    """A network without batch statistics, which leave biases before them to rounding."""
    return nn.Sequential(*[module for module in plain() if not isinstance(module, nn.BatchNorm1d)])


@pytest.mark.parametrize("rising", [0, 6])
def test_a_teacher_that_is_the_students_own_average(rising):
    """Its weight rises over `rising` of the steps as in the paper, if it is to rise."""
    student = without_noise()
    average = EMATeacher(student, decay=0.9)
    ramp_up = rising / (SETTINGS.epochs * len(batches()))
    result = distill(student, average, batches(), ema=average, ramp_up=ramp_up, settings=SETTINGS, device="cpu")
    assert result.student is average.module
    reference, copied = without_noise(), EMATeacher(without_noise(), decay=0.9)
    optimizer = torch.optim.Adam(reference.parameters(), lr=SETTINGS.lr)
    step, data = 0, batches()
    for epoch in range(SETTINGS.epochs):
        data.set_epoch(epoch)
        for batch in data:
            reference.train()
            with torch.no_grad():
                theirs = copied.module(batch.images)
            ours = reference(batch.images)
            soft = 16 * F.kl_div((ours / 4).log_softmax(1), (theirs / 4).softmax(1), reduction="batchmean")
            optimizer.zero_grad()
            alpha = 0.5 * (math.exp(-5 * (1 - step / rising) ** 2) if step < rising else 1)
            ((1 - alpha) * F.cross_entropy(ours, batch.labels) + alpha * soft).backward()
            optimizer.step()
            step += 1
            copied.update(reference, step)
    for name, value in weights(average.module).items():
        torch.testing.assert_close(value, copied.module.state_dict()[name], rtol=1e-3, atol=1e-4)


@dataclass
class Documents:
    """A batch of another kind, as the document batches are."""

    sequence: torch.Tensor
    labels: torch.Tensor

    def to(self, device):
        return self


class DocumentBatches(ImageLoader):
    def __iter__(self):
        return (Documents(batch.images, batch.labels) for batch in super().__iter__())


def test_another_kind_of_data_needs_an_adapter_alone():
    data = DocumentBatches(*coloured(), batch_size=16, shuffle=True, augment=Augment())
    adapter = lambda network, batch, _: {"logits": network(batch.sequence)}  # noqa: E731
    adapted = distill(net(), net(1), data, outputs=adapter, settings=SETTINGS, device="cpu")
    usual = distill(net(), net(1), batches(), settings=SETTINGS, device="cpu")
    assert equal(weights(adapted.student), weights(usual.student))


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (net(), net(classes=7), "teacher has 7 classes, the student 10"),
        (net(classes=7), net(classes=7), "labels from 0 to 9 do not fit a student of 7 classes"),
        (net(), nn.Sequential(nn.AvgPool2d(8)), r"logits \(batch, classes\)"),
    ],
)
def test_misfits_are_refused_before_anything_is_written_or_trained(tmp_path, student, teacher, words):
    before = weights(student)
    data = batches(shuffle=False)
    with pytest.raises(DistillationError, match=words):
        distill(student, teacher, data, settings=SETTINGS, device="cpu", output=tmp_path)
    assert equal(weights(student), before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "settings",
    [{"alpha": 1.5}, {"temperature": 0.0}, {"soft": "none such"}, {"label_smoothing": 1.0}, {"ramp_up": 2.0}],
)
def test_impossible_targets_are_refused(settings):
    with pytest.raises(ValueError, match=r"alpha|temperature|none such|smoothing|ramp_up"):
        distill(net(), net(1), batches(), settings=SETTINGS, device="cpu", **settings)


def test_training_at_chance_is_warned_of_and_noted(caplog):
    stuck = {"lr": 1e-9}
    student = net()
    with torch.no_grad():
        student[-1].weight.zero_()
        student[-1].bias.zero_()
    result = distill(copy.deepcopy(student), net(1), batches(), settings=replace(SETTINGS, **stuck), device="cpu")
    assert "still at chance after the first epoch" in caplog.text
    assert result.history[0][AT_CHANCE] == pytest.approx(torch.log(torch.tensor(10.0)).item(), abs=1e-4)
    assert AT_CHANCE not in result.history[1]
    assert len(result.warnings) == 1
    caplog.clear()
    learning = distill(net(width=32), net(1), batches(), alpha=0.0, settings=SETTINGS, device="cpu")
    assert learning.warnings == ()
    assert caplog.text == ""
    assert chance_warnings([{"alpha 0.5/at_chance": 2.3}])[0].startswith("alpha 0.5: ")
