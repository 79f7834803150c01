"""Distil any network into any other, here one CNN into a smaller one: `python examples/distil_cnn.py`.

The images are made up: each class has a colour of its own, under noise. Replace them by your data and networks.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import docvit
import kd

torch.manual_seed(0)
labels = torch.arange(400) % 4
images = torch.randn(4, 3, 1, 1)[labels] + torch.randn(400, 3, 16, 16)  # (400, 3, 16, 16)
loader = DataLoader(TensorDataset(images, labels), batch_size=50, shuffle=True)


def network(width: int) -> nn.Module:
    layers = nn.Conv2d(3, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)
    return nn.Sequential(*layers)


def accuracy(model: nn.Module) -> dict[str, float]:
    return {"accuracy": float((model(images).argmax(1) == labels).float().mean())}


teacher, student = network(64), network(4)
optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
for _ in range(5):
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        optimizer.step()

settings = docvit.TrainSettings(epochs=10, lr=1e-2)
result = kd.distill(student, teacher, loader, alpha=0.5, temperature=4.0, settings=settings, evaluate=accuracy)
print(result.comparison)
