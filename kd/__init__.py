"""Knowledge distillation: losses, teachers, students of documents and of images, and the CIFAR-10 benchmarks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docvit.training.ema import EMATeacher
    from kd.cifar10.networks import StudentCNN, TeacherCNN
    from kd.config import DistillationError, DistillConfig
    from kd.distill import Distillation, distill
    from kd.documents.run import DocumentDistillation, distill_documents
    from kd.losses import consistency, dist, distillation_loss, dkd, feature_loss, soft_targets, standardised
    from kd.sweep import Sweep, measure
    from kd.teacher import Teacher

# imported when they are asked for: `kd --help` needs no torch
_NAMES = {
    "docvit.training.ema": ["EMATeacher"],
    "kd.cifar10.networks": ["StudentCNN", "TeacherCNN"],
    "kd.config": ["DistillConfig", "DistillationError"],
    "kd.distill": ["Distillation", "distill"],
    "kd.documents.run": ["DocumentDistillation", "distill_documents"],
    "kd.losses": ["consistency", "dist", "distillation_loss", "dkd", "feature_loss", "soft_targets", "standardised"],
    "kd.sweep": ["Sweep", "measure"],
    "kd.teacher": ["Teacher"],
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "DistillConfig",
    "Distillation",
    "DistillationError",
    "DocumentDistillation",
    "EMATeacher",
    "StudentCNN",
    "Sweep",
    "Teacher",
    "TeacherCNN",
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


class _Package(ModuleType):
    """`kd.distill` is the function, also once the module of that name has been imported, which Python binds here."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.distill if name == "distill" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kd' has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
