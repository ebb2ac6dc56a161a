"""What an engine puts into a sub-pixel, given the model's 256-way distribution there: a *chooser*.

A chooser is plain data; every engine implements it. The literal implementation, which the reference engine runs, is
:meth:`Greedy.choose` and :meth:`Sample.choose`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from ..pixelcnn.heads import LEVELS


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Algorithm 1 of PixelDefend: the likeliest value within ±eps of the input's; ties go to the smallest value.

    eps: an integer, or (N,) uint8, one of each image. keep_bits: a sub-pixel whose input value costs at most so many
    bits, given what was decoded before it, keeps that value (None: no such rule).
    """

    eps: int | Tensor
    keep_bits: float | None = None

    def eps_of(self, N: int) -> Tensor:
        """eps of each of N images: (N,) uint8."""
        return self.eps if isinstance(self.eps, Tensor) else torch.full((N,), self.eps, dtype=torch.uint8)

    def choose(self, log_probs: Tensor, given: Tensor, position: int) -> Tensor:
        """The values (N,) uint8 of one sub-pixel: log_probs (N, 256) in nats, given (N,) uint8 the input's values."""
        distance = (torch.arange(LEVELS) - given[:, None].int()).abs()
        best = (
            log_probs.masked_fill(distance > self.eps_of(len(given))[:, None], -torch.inf).argmax(dim=1).to(torch.uint8)
        )
        if self.keep_bits is None:
            return best
        bits = -log_probs.gather(1, given[:, None].long())[:, 0] / math.log(2.0)
        return torch.where(bits <= self.keep_bits, given, best)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A draw from the distribution to the power 1 / temperature, normalised, by inversion of its cumulative sum.

    The uniform number of a sub-pixel is a function of seed, number of the image (``first`` plus its place in the
    batch), and raster position alone: :func:`uniforms`.
    """

    seed: int
    temperature: float = 1.0
    first: int = 0

    def choose(self, log_probs: Tensor, given: Tensor, position: int) -> Tensor:
        """The values (N,) uint8 of the sub-pixel at ``position``; log_probs (N, 256) in nats."""
        images = np.arange(self.first, self.first + len(log_probs), dtype=np.uint64)
        u = torch.from_numpy(uniforms(self.seed, images, position))
        cumulative = (log_probs.double() / self.temperature).softmax(dim=1).cumsum(dim=1)
        target = u[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=LEVELS - 1).to(torch.uint8)


Chooser = Greedy | Sample


def uniforms(seed: int, images: np.ndarray, position: int) -> np.ndarray:
    """Uniform numbers in (0, 1), float64 (N,), multiples of 2^-24: one per image (N,) uint64 at a raster position.

    Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed's 64 bits as key
    and (image, position) as counter; position is (row * W + column) * C + channel.
    """
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    images = images.astype(np.uint64)
    zero = np.zeros_like(images)
    counter = [images & low, images >> high, zero + np.uint64(position), zero]
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)]
    for _ in range(10):
        first, second = counter[0] * np.uint64(0xD2511F53), counter[2] * np.uint64(0xCD9E8D57)
        counter = [second >> high ^ counter[1] ^ key[0], second & low, first >> high ^ counter[3] ^ key[1], first & low]
        key = [key[0] + np.uint64(0x9E3779B9) & low, key[1] + np.uint64(0xBB67AE85) & low]
    return ((counter[0] >> np.uint64(9)).astype(np.float64) + 0.5) / 2.0**23
