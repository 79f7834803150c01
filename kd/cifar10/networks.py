"""The two CIFAR CNNs of the report, layer for layer: no normalisation, one pooling, ReLU after all but the last."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

Init = Literal["default", "he"]


class _CNN(nn.Module):
    """Convolutions conv1.. (padding 1, ReLU), average pooling 2x2, fc1 (256, ReLU), fc2; for images of 32 x 32."""

    convolutions: ClassVar[tuple[tuple[int, int], ...]]  # (channels, kernel)

    def __init__(self, *, num_classes: int = 10, width: float = 1.0, init: Init = "default") -> None:
        super().__init__()
        if init not in ("default", "he"):
            raise ValueError(f'init is "default" or "he", not {init!r}')
        self.num_classes = num_classes
        channels, side = 3, 32
        for number, (full_width, kernel) in enumerate(self.convolutions, start=1):
            narrowed = max(1, round(full_width * width))
            self.add_module(f"conv{number}", nn.Conv2d(channels, narrowed, kernel, padding=1))
            channels, side = narrowed, side + 3 - kernel
        self.pool = nn.AvgPool2d(2)
        self.fc1 = nn.Linear(channels * (side // 2) ** 2, 256)
        self.fc2 = nn.Linear(256, num_classes)
        if init == "he":
            he_init(self)

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, 32, 32) to the pooled maps (B, C, S, S) of the last convolution."""
        for number in range(1, len(self.convolutions) + 1):
            images = F.relu(self.get_submodule(f"conv{number}")(images))
        return self.pool(images)

    def forward_head(self, maps: Tensor) -> Tensor:
        """Pooled maps (B, C, S, S) to logits (B, num_classes)."""
        return self.fc2(F.relu(self.fc1(maps.flatten(1))))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


class StudentCNN(_CNN):
    """3 convolutions and 2 linear layers; 3,749,038 parameters and 57.7 MMAC per image at 10 classes.

    Keywords: `num_classes`, `width` (factor on the convolutions' channels), `init` ("default" is PyTorch's, under which
    the first logits hardly differ from image to image; "he" see `he_init`).
    """

    convolutions = ((6, 3), (36, 3), (64, 5))


class TeacherCNN(_CNN):
    """7 convolutions and 2 linear layers; 21,630,414 parameters and 1.936 GMAC per image at 10 classes.

    Keywords as `StudentCNN`. `width=0.5` is the middle-sized teacher for machines without an accelerator.
    """

    convolutions = ((6, 3), (12, 3), (24, 3), (48, 3), (96, 3), (192, 5), (384, 5))


def he_init(model: nn.Module) -> None:
    """Draw every convolution and linear layer as suits ReLU: normal, variance 2 / fan_in, biases zero, in place.

    Source: He et al., "Delving Deep into Rectifiers", arXiv 1502.01852, equation 10.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
