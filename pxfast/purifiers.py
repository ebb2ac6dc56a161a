"""What a purifier is to defended classifiers and to the attacks that know it: one protocol, and how it is called.

A *purifier* is any ``nn.Module`` that takes floating images (N, C, H, W) in [0, 1] and gives such images, each
independently of the others in its batch, bit for bit. That is all that most attacks need. What else one may have:

* ``stochastic = True``, ``runs`` and ``draw(images, seeds)``: its result depends on random numbers, and all of them
  come from the seeds, one an image. Its own ``forward(images)`` is ``draw(images, image_seeds(images, self.seed))``.
* ``score(images)``: the direction in which it thinks an image becomes likelier.
* ``differentiate(images, seeds)``: what ``draw`` gives (or ``forward``, if it is not stochastic), with its own
  gradient, whatever its ``backward`` says.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

FIXED_BATCH = 32  # images that a network always sees at once


@runtime_checkable
class StochasticPurifier(Protocol):
    """A purifier whose result is random.

    stochastic: True. runs: how many draws' logits a defended classifier averages. draw: one run over floating images
    (N, C, H, W) in [0, 1], all of whose random numbers for image i are a function of ``seeds[i]``, an integer in
    0..2^63 - 1; differentiable or straight-through, as ``forward`` is.
    """

    stochastic: bool
    runs: int

    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor: ...


@runtime_checkable
class ScoredPurifier(Protocol):
    """A purifier with a score: (an estimate of) the gradient of log p with respect to the image.

    score: floating images (N, C, H, W) in [0, 1] to a tensor of that shape, without a gradient of its own; each image's
    independent of its batch.
    """

    def score(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class DifferentiablePurifier(Protocol):
    """A purifier that can be differentiated from end to end.

    differentiate: floating images (N, C, H, W) in [0, 1] and a seed each to the purified ones, by way of operations
    that autograd follows. seeds: ignored unless the purifier is stochastic.
    """

    def differentiate(self, images: Tensor, seeds: Sequence[int]) -> Tensor: ...


def is_stochastic(purifier: object) -> bool:
    """Whether a purifier's result is random. TypeError where it says so and has no ``draw`` or no ``runs``."""
    if not getattr(purifier, "stochastic", False):
        return False
    if not isinstance(purifier, StochasticPurifier):
        raise TypeError(f"a stochastic purifier needs draw(images, seeds) and runs, which {purifier!r} lacks")
    return True


def image_key(image: Tensor, seed: int) -> int:
    """128 bits that depend on an image's values, their type, and ``seed`` alone: the root of its random numbers."""
    values = image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(values, digest_size=16, key=str(seed).encode()).digest(), "little")


def image_seeds(images: Tensor, seed: int = 0) -> list[int]:
    """A seed in 0..2^63 - 1 for each image (N, C, H, W), from its own values, rounded to float32, and ``seed``.

    So an image's random numbers are the same in every batch, in every order, and on every device.
    """
    return [image_key(image, seed) >> 65 for image in images.float()]


def derived_seeds(seeds: Sequence[int], *numbers: int) -> list[int]:
    """Other seeds, for the draws that ``numbers`` count: independent of each other for different seeds or numbers."""
    derived = []
    for seed in seeds:
        text = ":".join(map(str, (seed, *numbers)))
        derived.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1)
    return derived


def standard_normal(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Numbers from N(0, 1) in the shape, type and place of ``like`` (N, C, H, W); those of image i are by seeds[i]."""
    shape = tuple(like.shape[1:])
    noise = [np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape) for seed in seeds]
    return torch.from_numpy(np.stack(noise)).to(like) if noise else torch.zeros_like(like)


def in_fixed_batches(function: Callable[[Tensor], Tensor], images: Tensor, size: int = FIXED_BATCH) -> Tensor:
    """``function`` of N > 0 images, always called with ``size`` of them, the last ones copies of another.

    Libraries choose their convolution by the batch's size, and with it the rounding: without this an image's result
    would depend on how many others are computed beside it.
    """
    results = []
    for part in images.split(size):
        missing = size - len(part)
        filled = torch.cat((part, part[:1].expand(missing, -1, -1, -1))) if missing else part
        results.append(function(filled)[: len(part)])
    return torch.cat(results)
