"""What an engine puts into a sub-pixel, given the model's 256-way distribution there: a *chooser*.

A chooser is plain data; every engine implements it. The literal implementation, which the reference engine runs, is
:meth:`Greedy.choose` and :meth:`Sample.choose`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..pixelcnn.heads import LEVELS

LEAST_MASS = 1e-30  # fp32 does not tell smaller ones apart
MOST_KEEP_BITS = 99.0  # 2**-99 is more than LEAST_MASS, so that all engines decide alike
Ranges: TypeAlias = tuple[Tensor, Tensor]  # the least and the greatest value of sub-pixels, uint8 of one shape


def out_of(ranges: Ranges) -> Tensor:
    """Which of the 256 values lie outside of ranges: bool, their shape and an axis of the values behind it."""
    values = torch.arange(LEVELS, device=ranges[0].device)
    return (values < ranges[0].unsqueeze(-1)) | (values > ranges[1].unsqueeze(-1))


@dataclasses.dataclass(frozen=True)
class Greedy:
    """Algorithm 1 of PixelDefend: the likeliest value in a sub-pixel's range; ties go to the smallest value.

    eps: the range is what lies within ±eps of the input's value; an integer, or (N,) uint8, one of each image. within:
    the least and the greatest value of every sub-pixel, uint8 of the images' shape both, in the place of eps; every
    least is at most the greatest, and the input's values lie in between. keep_bits: a sub-pixel whose input value costs
    at most so many bits, given what was decoded before it, keeps that value (None: no such rule). At most
    ``MOST_KEEP_BITS``.
    """

    eps: int | Tensor = 0
    keep_bits: float | None = None
    within: Ranges | None = None

    def ranges(self, given: Tensor) -> Ranges:
        """The least and the greatest value of every sub-pixel for images ``given``, uint8: of its shape and device."""
        if self.within is not None:
            return self.within
        eps = self.eps if isinstance(self.eps, Tensor) else torch.tensor(self.eps, dtype=torch.uint8)
        eps = eps.to(given.device).reshape(-1, 1, 1, 1)
        return given - torch.minimum(given, eps), given + torch.minimum(255 - given, eps)

    def choose(self, log_probs: Tensor, given: Tensor, ranges: Ranges, position: int) -> Tensor:
        """The values (N,) uint8 of one sub-pixel: log_probs (N, 256) in nats, given (N,) uint8 the input's values.

        ranges: (N,) uint8 both, of this sub-pixel.
        """
        best = log_probs.masked_fill(out_of(ranges), -torch.inf).argmax(dim=1).to(torch.uint8)
        if self.keep_bits is None:
            return best
        bits = -log_probs.gather(1, given[:, None].long())[:, 0] / math.log(2.0)
        return torch.where(bits <= self.keep_bits, given, best)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A draw from the distribution to the power 1 / temperature, normalised, by inversion of its cumulative sum.

    within: the least and the greatest value of every sub-pixel, uint8 of the images' shape both: the distribution is
    normalised over these alone. None: all 256 values. A range less probable than about ``LEAST_MASS`` gets its
    likeliest value; the fast engines draw from it where the head is the softmax one. The uniform number of a sub-pixel
    is a function of seed, number of the image (``first`` plus its place in the batch), and raster position alone:
    :func:`uniforms`.
    """

    seed: int
    temperature: float = 1.0
    first: int = 0
    within: Ranges | None = None

    def ranges(self, given: Tensor) -> Ranges:
        """The least and the greatest value of every sub-pixel, uint8: of the shape and the device of ``given``."""
        if self.within is not None:
            return self.within
        return torch.zeros_like(given), torch.full_like(given, LEVELS - 1)

    def choose(self, log_probs: Tensor, given: Tensor, ranges: Ranges, position: int) -> Tensor:
        """The values (N,) uint8 of the sub-pixel at ``position``; log_probs (N, 256) in nats, ranges (N,) uint8."""
        images = np.arange(self.first, self.first + len(log_probs), dtype=np.uint64)
        u = torch.from_numpy(uniforms(self.seed, images, position))
        powers = (log_probs.double() / self.temperature).masked_fill(out_of(ranges), -torch.inf)
        cumulative = powers.softmax(dim=1).cumsum(dim=1)
        target = u[:, None] * cumulative[:, -1:]
        drawn = torch.minimum(torch.searchsorted(cumulative, target, right=True)[:, 0], ranges[1].long())
        likely = log_probs.double().masked_fill(out_of(ranges), -torch.inf)
        return torch.where(likely.logsumexp(1).exp() > LEAST_MASS, drawn, likely.argmax(1)).to(torch.uint8)


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
