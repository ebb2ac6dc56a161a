"""Batches of one size, for results that do not depend on it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

FIXED_BATCH = 32  # images that a network always sees at once


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
