"""Knowledge distillation: losses, teachers, students of documents and of images, and the CIFAR-10 benchmarks."""

from docvit.training.ema import EMATeacher
from kd.cifar10.networks import StudentCNN, TeacherCNN
from kd.distill import Distillation, DistillationError, distill
from kd.documents.run import DocumentDistillation, distill_documents
from kd.losses import consistency, dist, distillation_loss, dkd, feature_loss, soft_targets, standardised
from kd.sweep import Sweep, measure
from kd.teaching import Teaching

__all__ = [
    "Distillation",
    "DistillationError",
    "DocumentDistillation",
    "EMATeacher",
    "StudentCNN",
    "Sweep",
    "TeacherCNN",
    "Teaching",
    "consistency",
    "dist",
    "distill",
    "distill_documents",
    "distillation_loss",
    "dkd",
    "feature_loss",
    "measure",
    "soft_targets",
    "standardised",
]
