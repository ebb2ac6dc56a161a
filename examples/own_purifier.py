"""A purifier of one's own before the referee: torch alone, and nothing of pxfast but the protocol.

    pxfast evaluate adaptive --purifier examples.own_purifier:median --root DATA --images 64 --out judged
    pxfast evaluate adaptive --purifier examples.own_purifier:shaken --root DATA --images 64 --out judged

A diffusion purifier goes the same way: its ``draw`` starts from noise that the seeds determine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MedianBlur(nn.Module):
    """A deterministic purifier: floating images (N, C, H, W) in [0, 1] to such images, each by itself."""

    def forward(self, images: Tensor) -> Tensor:
        """The median of 3x3 neighbours. It needs no gradient: the attacks take it straight through."""
        count, channels, height, width = images.shape
        patches = F.unfold(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3)
        return patches.reshape(count, channels, 9, height, width).median(dim=2).values


class ShakenMedian(MedianBlur):
    """A random one: noise first, all of which comes from a seed for each image. One draw decides."""

    stochastic = True
    runs = 1

    def __init__(self, sigma: float = 0.05) -> None:
        super().__init__()
        self.sigma = sigma

    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        noise = [torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
        return super().forward((images + self.sigma * torch.stack(noise).to(images)).clamp(0.0, 1.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.draw(images, [0] * len(images))


def median() -> nn.Module:
    """The deterministic purifier."""
    return MedianBlur().eval()


def shaken() -> nn.Module:
    """The random purifier."""
    return ShakenMedian().eval()
