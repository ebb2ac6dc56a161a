"""The real images that the benchmarks purify."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def real_images(channels: int) -> Tensor:
    """The 64 test images of Fashion-MNIST (1 channel) or 48 of CIFAR-10 (3) in tests/data: (N, C, H, W) uint8."""
    with np.load(Path(__file__).parents[1] / "tests" / "data" / "real_images.npz") as file:
        return torch.from_numpy(file["fashion_mnist" if channels == 1 else "cifar10"])


def noisy_images(channels: int, count: int) -> Tensor:
    """Test images (count, channels, H, W) uint8 of Fashion-MNIST (1) or CIFAR-10 (3), with uniform noise of up to ±8.

    There are 64 and 48 of them; beyond that they come again, with other noise.
    """
    images = real_images(channels)
    images = images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
    noise = torch.randint(-8, 9, images.shape, generator=torch.Generator().manual_seed(0))
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)
