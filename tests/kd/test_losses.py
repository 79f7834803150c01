"""Losses against float64 NumPy written another way, against their limits, and in half precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kd import losses

SOFT = sorted(losses.SOFT_LOSSES)


def draw(batch=16, classes=10, *, spread=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(batch, classes, generator=generator) * spread
    teacher = torch.randn(batch, classes, generator=generator) * spread
    return student, teacher, torch.randint(classes, (batch,), generator=generator)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kl(p, q):
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def expected_soft_targets(student, teacher, targets, temperature):
    rows = zip(softmax(teacher / temperature), softmax(student / temperature), strict=True)
    return temperature**2 * np.mean([kl(p, q) for p, q in rows])


def expected_standardised(student, teacher, targets, temperature):
    def standard(logits):
        return (logits - logits.mean(axis=1, keepdims=True)) / logits.std(axis=1, keepdims=True)

    return expected_soft_targets(standard(student), standard(teacher), targets, temperature)


def expected_dkd(student, teacher, targets, temperature):
    """By the paper's definition: probabilities renormalised, one sample at a time."""
    total = []
    for q, p, y in zip(softmax(student / temperature), softmax(teacher / temperature), targets, strict=True):
        target = kl([p[y], 1 - p[y]], [q[y], 1 - q[y]])
        other = kl(np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y]))
        total.append(target + 8 * other)
    return temperature**2 * np.mean(total)


def expected_dist(student, teacher, targets, temperature):
    q, p = softmax(student / temperature), softmax(teacher / temperature)
    inter = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    intra = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    return temperature**2 * (inter + intra)


EXPECTED = {
    "soft-targets": expected_soft_targets,
    "standardised": expected_standardised,
    "dkd": expected_dkd,
    "dist": expected_dist,
}


def test_every_registered_loss_is_checked_here():
    assert set(EXPECTED) == set(SOFT)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name", SOFT)
def test_soft_losses_equal_float64_references(name, classes, temperature):
    student, teacher, targets = draw(classes=classes)
    value = losses.soft_loss(name)(student, teacher, targets, temperature)
    expected = EXPECTED[name](student.double().numpy(), teacher.double().numpy(), targets.numpy(), temperature)
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert float(value) == pytest.approx(expected, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("name", SOFT)
def test_a_student_that_equals_its_teacher_has_nothing_to_learn(name, classes):
    logits, _, targets = draw(classes=classes)
    student = logits.clone().requires_grad_()
    value = losses.soft_loss(name)(student, logits, targets, 4.0)
    value.backward()
    assert value == 0
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", SOFT)
def test_gradients_equal_finite_differences(name):
    student, teacher, targets = draw(batch=5, classes=4)
    soft = losses.soft_loss(name)
    inputs = (student.double().requires_grad_(),)
    assert torch.autograd.gradcheck(lambda logits: soft(logits, teacher.double(), targets, 2.0), inputs)


@pytest.mark.parametrize("name", SOFT)
def test_a_classs_number_does_not_matter(name):
    student, teacher, targets = draw()
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    soft = losses.soft_loss(name)
    permuted = soft(student[:, order], teacher[:, order], order.argsort()[targets], 2.0)
    torch.testing.assert_close(soft(student, teacher, targets, 2.0), permuted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SOFT)
def test_half_precision_logits_give_the_loss_of_their_exact_values(name, dtype):
    student, teacher, targets = draw(spread=30.0)
    student, teacher = student.to(dtype), teacher.to(dtype)
    value = losses.soft_loss(name)(student, teacher, targets, 4.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, losses.soft_loss(name)(student.float(), teacher.float(), targets, 4.0))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
@pytest.mark.parametrize("name", SOFT)
def test_flat_and_enormous_logits_stay_finite(name, scale):
    student, teacher, targets = draw()
    student = (student * scale).requires_grad_()
    value = losses.soft_loss(name)(student, teacher * scale, targets, 1.0)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", SOFT)
def test_no_gradient_reaches_the_teacher(name):
    student, teacher, targets = draw()
    teacher.requires_grad_()
    losses.soft_loss(name)(student.requires_grad_(), teacher, targets, 2.0).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", SOFT)
def test_a_teacher_of_other_classes_is_refused(name):
    student, _, targets = draw(classes=10)
    for classes in (1, 100):
        with pytest.raises(ValueError, match=r"\(16, 10\)"):
            losses.soft_loss(name)(student, torch.zeros(16, classes), targets, 2.0)


def test_the_gradient_of_soft_targets_tends_to_matching_logits_as_the_temperature_grows():
    student, teacher, _ = draw(batch=4)
    student, teacher = (logits.double() - logits.double().mean(dim=1, keepdim=True) for logits in (student, teacher))
    student.requires_grad_()
    losses.soft_targets(student, teacher, 1e4).backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / (10 * 4), rtol=1e-2, atol=1e-4)


def test_plain_soft_targets_are_dkd_whose_weights_follow_the_teacher():
    student, teacher, targets = (value[:1] for value in draw())
    left_to_others = 1 - F.softmax(teacher / 2, dim=1)[0, targets[0]]
    parts = losses.dkd(student, teacher, targets, temperature=2, target_weight=1, other_weight=float(left_to_others))
    torch.testing.assert_close(parts, losses.soft_targets(student, teacher, 2))


def test_standardised_logits_forget_offset_and_scale_of_each_sample():
    student, teacher, _ = draw()
    scale, offset = torch.rand(16, 1) + 0.5, torch.randn(16, 1)
    changed = losses.standardised(student * scale + offset, teacher, 2.0)
    torch.testing.assert_close(changed, losses.standardised(student, teacher, 2.0), rtol=1e-4, atol=1e-6)


def test_dist_of_one_sample_is_its_inter_class_part():
    student, teacher, _ = (value[:1] for value in draw())
    both = losses.dist(student, teacher, temperature=1.0)
    torch.testing.assert_close(both, losses.dist(student, teacher, temperature=1.0, intra_weight=0.0))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_without_alpha_the_loss_is_cross_entropy_to_the_bit_and_never_reads_the_teacher(label_smoothing):
    student, _, targets = draw()
    expected = F.cross_entropy(student, targets, label_smoothing=label_smoothing)
    for teacher in (None, torch.full_like(student, math.nan), torch.zeros(3, 7)):
        parts = losses.distillation_loss(
            student, teacher, targets, alpha=0, temperature=4.0, label_smoothing=label_smoothing
        )
        assert torch.equal(parts["loss"], expected)
        assert torch.equal(parts["hard"], expected)
        assert parts["soft"] == 0


@pytest.mark.parametrize("soft", SOFT)
def test_the_parts_add_up(soft):
    student, teacher, targets = draw()
    parts = losses.distillation_loss(
        student, teacher, targets, alpha=0.7, temperature=3.0, soft=soft, label_smoothing=0.1
    )
    assert set(parts) == {"loss", "hard", "soft"}
    smoothed = np.full((16, 10), 0.01) + 0.9 * np.eye(10)[targets.numpy()]
    hard = -(smoothed * np.log(softmax(student.double().numpy()))).sum(axis=1).mean()
    expected = EXPECTED[soft](student.double().numpy(), teacher.double().numpy(), targets.numpy(), 3.0)
    assert float(parts["hard"]) == pytest.approx(hard, rel=1e-5)
    assert float(parts["soft"]) == pytest.approx(expected, rel=1e-4)
    assert float(parts["loss"]) == pytest.approx(0.3 * hard + 0.7 * expected, rel=1e-4)


def test_with_alpha_one_the_loss_is_the_soft_part():
    student, teacher, targets = draw()
    parts = losses.distillation_loss(student, teacher, targets, alpha=1, temperature=2.0)
    assert torch.equal(parts["loss"], losses.soft_targets(student, teacher, 2.0))


def test_a_function_may_stand_for_a_name():
    student, teacher, targets = draw()
    parts = losses.distillation_loss(
        student, teacher, targets, alpha=1, temperature=2.0, soft=lambda s, t, y, T: s.new_tensor(T)
    )
    assert parts["loss"] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"soft": "psychic"}, "soft-targets"),
        ({"teacher_logits": None}, "teacher"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    student, teacher, targets = draw()
    settings = {"teacher_logits": teacher, "alpha": 0.5, "temperature": 2.0} | change
    with pytest.raises(ValueError, match=message):
        losses.distillation_loss(student, targets=targets, **settings)


@pytest.mark.parametrize("soft", SOFT)
def test_the_loss_is_one_graph_and_students_can_be_stacked(soft):
    student, teacher, targets = draw()

    def loss(logits):
        return losses.distillation_loss(logits, teacher, targets, alpha=0.5, temperature=2.0, soft=soft)["loss"]

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(student), loss(student))
    stacked = torch.stack([student, -student])
    torch.testing.assert_close(torch.func.vmap(loss)(stacked), torch.stack([loss(student), loss(-student)]))


def test_consistency_is_the_mean_squared_difference_of_probabilities():
    student, teacher, _ = draw()
    expected = np.mean((softmax(student.double().numpy()) - softmax(teacher.double().numpy())) ** 2)
    assert float(losses.consistency(student, teacher)) == pytest.approx(expected, rel=1e-5)
    assert losses.consistency(student, student) == 0


def test_ramp_up_rises_from_exp_minus_five_to_one():
    weights = [losses.ramp_up(step, 40) for step in (0, 20, 40, 100)]
    assert weights == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])
    assert losses.ramp_up(0, 0) == 1


@pytest.mark.parametrize("kind", sorted(losses.FEATURE_DISTANCES))
def test_feature_distances_equal_float64_references(kind):
    student, teacher = (torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (0, 1))
    a, b = student.double().numpy().reshape(-1, 24), teacher.double().numpy().reshape(-1, 24)
    if kind == "cosine":
        expected = np.mean([1 - u @ v / math.sqrt((u @ u) * (v @ v)) for u, v in zip(a, b, strict=True)])
    elif kind == "smooth-l1":
        expected = np.mean([d * d / 2 if d < 1 else d - 0.5 for d in np.abs(a - b).ravel()])
    else:
        if kind == "mse":
            a, b = ((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) for x in (a, b))
        expected = np.mean((a - b) ** 2)
    teacher.requires_grad_()
    value = losses.feature_loss(student.requires_grad_(), teacher, kind=kind)
    value.backward()
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)
    assert teacher.grad is None
    assert losses.feature_loss(student, student, kind=kind) == 0


@pytest.mark.parametrize("kind", sorted(losses.FEATURE_DISTANCES))
def test_features_without_rows_have_no_distance(kind):
    student = torch.zeros(0, 24, requires_grad=True)
    value = losses.feature_loss(student, torch.zeros(0, 24), kind=kind)
    value.backward()
    assert float(value.detach()) == 0


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_normalised_feature_distances_ignore_scale(kind):
    student, teacher = torch.randn(5, 24), torch.randn(5, 24)
    changed = losses.feature_loss(student * 100, teacher * 7, kind=kind)
    torch.testing.assert_close(changed, losses.feature_loss(student, teacher, kind=kind), rtol=1e-3, atol=1e-5)


def test_features_of_two_widths_need_a_projection():
    student, teacher = torch.randn(4, 6, 8), torch.randn(4, 6, 12)
    with pytest.raises(ValueError, match="projection"):
        losses.feature_loss(student, teacher)
    with pytest.raises(ValueError, match="cosine"):
        losses.feature_loss(student, student, kind="taxicab")
    projection = torch.nn.Linear(8, 12)
    losses.feature_loss(projection(student), teacher).backward()
    assert all(parameter.grad is not None for parameter in projection.parameters())
