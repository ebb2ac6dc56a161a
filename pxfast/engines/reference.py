"""The reference engine: the whole network, once more for every pixel. Slow and obviously right."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..heads import LEVELS
from ..schedule import Schedule

if TYPE_CHECKING:
    from . import Greedy


@torch.no_grad()
def decode(
    schedule: Schedule,
    images: Tensor,
    chooser: Greedy,
    *,
    precision: str,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """Algorithm 1, literally: see :class:`pxfast.engines.Decode`."""
    model = schedule.oracle(precision)
    result = images.clone()
    values = torch.arange(LEVELS)
    _, C, H, W = images.shape
    for i in range(H):
        for j in range(W):
            features = model(result)[:, :, i : i + 1, j : j + 1]  # depend on earlier pixels only
            for k in range(C):
                pixel = result[:, :, i : i + 1, j : j + 1]
                log_probs = model.head.log_probs(features, pixel)[:, k, 0, 0]
                distance = (values - images[:, k, i, j, None].int()).abs()
                log_probs = log_probs.masked_fill(distance > chooser.eps, -torch.inf)
                result[:, k, i, j] = log_probs.argmax(dim=1).to(torch.uint8)
    if report is not None:
        report(len(images))
    return result
