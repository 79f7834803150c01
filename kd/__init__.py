"""Knowledge distillation: losses, the EMA teacher, and the CIFAR-10 benchmarks."""

from kd.cnns import StudentCNN, TeacherCNN

__all__ = ["StudentCNN", "TeacherCNN"]
