"""Random numbers that depend on an image alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .values import check_has_values


def image_key(image: Tensor, seed: int) -> int:
    """128 bits that depend on an image's values, their type, and ``seed`` alone: the root of its random numbers."""
    values = image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(values, digest_size=16, key=str(seed).encode()).digest(), "little")


def image_seeds(images: Tensor, seed: int = 0) -> list[int]:
    """A seed in 0..2^63 - 1 for each image (N, C, H, W), from its own values, rounded to float32, and ``seed``.

    So an image's random numbers are the same in every batch, in every order, and on every device. TypeError for images
    that have no values, inside a transform of torch.func or a trace.
    """
    check_has_values(images)
    return [image_key(image, seed) >> 65 for image in images.float() + 0.0]  # -0 becomes 0


def derived_seeds(seeds: Sequence[int], *numbers: int | Sequence[int]) -> list[int]:
    """Other seeds, for the draws that ``numbers`` count: independent of each other for different seeds or numbers.

    numbers: each the same for all seeds, or one for each of them.
    """
    columns = [[number] * len(seeds) if isinstance(number, int) else number for number in numbers]
    derived = []
    for row in zip(seeds, *columns, strict=True):
        text = ":".join(map(str, row))
        derived.append(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1)
    return derived


def unseen_seed(seed: int, run: int = 0) -> int:
    """The seed of a run of an evaluation, whose attacks have ``seed``: their random numbers are others."""
    return derived_seeds([seed], run)[0]


def standard_normal(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Numbers from N(0, 1) in the shape, type and place of ``like`` (N, C, H, W); those of image i are by seeds[i]."""
    shape = tuple(like.shape[1:])
    noise = [np.random.Generator(np.random.Philox(key=seed)).standard_normal(shape) for seed in seeds]
    # the type first: Apple's GPUs have no float64
    return torch.from_numpy(np.stack(noise)).to(like.dtype).to(like.device) if noise else torch.zeros_like(like)
