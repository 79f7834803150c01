"""Knowledge distillation: losses, teachers, students of documents and of images, and the CIFAR-10 benchmarks."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # `X as X` exports X (PEP 484)
    from docvit.training.ema import EMATeacher as EMATeacher
    from kd.cifar10.networks import StudentCNN as StudentCNN
    from kd.cifar10.networks import TeacherCNN as TeacherCNN
    from kd.config import DistillationError as DistillationError
    from kd.config import DistillConfig as DistillConfig
    from kd.distill import Distillation as Distillation
    from kd.distill import distill as distill
    from kd.documents.run import DocumentDistillation as DocumentDistillation
    from kd.documents.run import distill_documents as distill_documents
    from kd.losses import consistency as consistency
    from kd.losses import dist as dist
    from kd.losses import distillation_loss as distillation_loss
    from kd.losses import dkd as dkd
    from kd.losses import feature_loss as feature_loss
    from kd.losses import soft_targets as soft_targets
    from kd.losses import standardised as standardised
    from kd.sweep import Sweep as Sweep
    from kd.sweep import measure as measure
    from kd.teacher import Teacher as Teacher

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

__all__ = list(_MODULES)


class _Package(ModuleType):
    """`kd.distill` is the function, also once the module of that name has been imported, which Python binds here."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value.distill if name == "distill" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kd' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
