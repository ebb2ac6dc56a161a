"""Which values a purification may put into a sub-pixel: eps, and the adaptive rules (Song et al. 2018, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.checks import check_optional_number
from ..base.records import shown
from ..engines.choosers import Greedy
from ..pixelcnn.likelihood import bits_per_dim
from ..pixelcnn.network import PixelCNN

# Adaptive purification: bits/dim by channels (the paper, section 4.2: Fashion-MNIST, CIFAR-10), bits of a sub-pixel
IMAGE_THRESHOLD = {1: 1.8, 3: 3.2}
SUB_PIXEL_THRESHOLD = 3.0
ADAPTIVE = ("image", "sub-pixel")


def check_adaptive(adaptive: str | None, threshold: float | None) -> None:
    """Raise TypeError or ValueError unless these are a rule of purification and what it counts as likely.

    adaptive: None, 'image' or 'sub-pixel'. threshold: None or a number of bits, at least 0; None where adaptive is.
    """
    if adaptive is not None and (not isinstance(adaptive, str) or adaptive not in ADAPTIVE):
        kind = ValueError if isinstance(adaptive, str) else TypeError
        raise kind(f"adaptive must be None, 'image' or 'sub-pixel', got {shown(adaptive)}")
    if check_optional_number("threshold", threshold, 0.0) is not None and adaptive is None:
        raise ValueError(f"threshold={threshold!r} means nothing without adaptive='image' or 'sub-pixel'")


def greedy(grid: Tensor, model: PixelCNN, eps: int, adaptive: str | None, threshold: float | None) -> Greedy:
    """The chooser that purifies uint8 images (N, C, H, W) under these settings, which :func:`purify` explains."""
    if adaptive == "image":
        if threshold is None:
            threshold = IMAGE_THRESHOLD[grid.shape[1]]
        suspicious = bits_per_dim(grid, model=model) >= threshold
        return Greedy(suspicious.to(torch.uint8) * eps)
    if adaptive == "sub-pixel":
        return Greedy(eps, keep_bits=SUB_PIXEL_THRESHOLD if threshold is None else float(threshold))
    return Greedy(eps)
