"""Knowledge distillation: losses, the EMA teacher, and the CIFAR-10 benchmarks."""

from kd.cnns import StudentCNN, TeacherCNN
from kd.distill import Distillation, DistillationError, distill
from kd.ema import EMATeacher
from kd.losses import consistency, dist, distillation_loss, dkd, feature_loss, soft_targets, standardised
from kd.sweep import Sweep, measure

__all__ = [
    "Distillation",
    "DistillationError",
    "EMATeacher",
    "StudentCNN",
    "Sweep",
    "TeacherCNN",
    "consistency",
    "dist",
    "distill",
    "distillation_loss",
    "dkd",
    "feature_loss",
    "measure",
    "soft_targets",
    "standardised",
]
