"""Classifiers as users write them, for images (N, 1, 8, 8) of five classes: a small CNN, one like torchvision's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

OFFSET = 0.5


def centred(x: Tensor) -> Tensor:
    return x - OFFSET


class SmallCNN(nn.Module):
    """Two convolutions, with a plain tensor and a global value in its preprocessing."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Conv2d(1, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 16, 3, stride=2)
            self.output = nn.Linear(16, 5)
        self.scale = torch.tensor(4.0)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(centred(x) * self.scale))
        return 20.0 * self.output(torch.relu(self.second(x)).mean((2, 3)))


class Features(nn.Module):
    """As torchvision's networks are: features, a pool, dropout and batch normalisation; normalises inside."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.features = nn.Sequential(
                nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((2, 2))
            )
            self.classifier = nn.Sequential(nn.Flatten(1), nn.Dropout(0.5), nn.Linear(32, 5))
        self.register_buffer("mean", torch.tensor([0.3]).reshape(1, 1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return 10.0 * self.classifier(self.features((x - self.mean) / 0.3))


class BentLinear(nn.Module):
    """Three classes by random projections of the image, bent."""

    def __init__(self, inputs: int, seed: int = 0, scale: float = 8.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(inputs, 3, generator=generator), requires_grad=False)
        self.scale = scale
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return torch.sin(self.scale * (images.flatten(1) - 0.5) @ self.weight)


class Wrapped(nn.Module):
    """Any function of a network and of images as a module."""

    def __init__(self, network: nn.Module, function) -> None:
        super().__init__()
        self.network = network
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.network, x)


def plain(network: nn.Module) -> nn.Module:
    """A network of pxfast's, as a module of a user's."""
    return Wrapped(network, lambda network, x: network(x)).eval()


def small() -> nn.Module:
    """A SmallCNN in eval mode: what the command line calls."""
    return SmallCNN().eval()
