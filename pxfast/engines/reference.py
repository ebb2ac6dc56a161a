"""The reference engine: the whole network, once more for every pixel. Slow and obviously right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..pixelcnn.oracle import oracle
from .choosers import Chooser
from .schedule import Schedule
from .settings import DEFAULTS, DecodeSettings


def best_precision(settings: DecodeSettings = DEFAULTS) -> str:
    """'fp32': the arithmetic is the oracle's."""
    return "fp32"


@torch.no_grad()
def decode(
    schedule: Schedule,
    images: Tensor,
    chooser: Chooser,
    *,
    precision: str,
    settings: DecodeSettings = DEFAULTS,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """One sub-pixel after the other, literally: see :class:`pxfast.engines.Decode`."""
    model = oracle(schedule.model, precision)
    result = images.clone()
    _, C, H, W = images.shape
    lower, upper = chooser.ranges(images)
    for i in range(H):
        for j in range(W):
            # depend on earlier pixels only; image by image, since torch rounds a batch as it likes
            features = torch.cat([model(image)[:, :, i : i + 1, j : j + 1] for image in result.split(1)])
            for k in range(C):
                pixel = result[:, :, i : i + 1, j : j + 1]
                log_probs = model.head.log_probs(features, pixel)[:, k, 0, 0]
                result[:, k, i, j] = chooser.choose(
                    log_probs, images[:, k, i, j], (lower[:, k, i, j], upper[:, k, i, j]), (i * W + j) * C + k
                )
    if report is not None:
        report(len(images))
    return result
