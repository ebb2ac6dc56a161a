"""Which values a purification may put into a sub-pixel: eps, ranges of one's own, and the adaptive rules (Song et al.
2018, section 4.2).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_optional_number
from ..base.records import shown
from ..data.images import Images
from ..engines.choosers import MOST_KEEP_BITS, Greedy, Ranges
from ..pixelcnn.likelihood import bits_per_dim_alone
from ..pixelcnn.network import PixelCNN

# Adaptive purification: bits/dim by channels (the paper, section 4.2: Fashion-MNIST, CIFAR-10), bits of a sub-pixel
IMAGE_THRESHOLD = {1: 1.8, 3: 3.2}
SUB_PIXEL_THRESHOLD = 3.0
ADAPTIVE = ("image", "sub-pixel")
DEFAULT_EPS = 16
Within: TypeAlias = tuple[Images, Images]  # the least and the greatest values, uint8, of shapes that broadcast


def check_adaptive(adaptive: str | None, threshold: float | None) -> None:
    """Raise TypeError or ValueError unless these are a rule of purification and what it counts as likely.

    adaptive: None, 'image' or 'sub-pixel'. threshold: None or a number of bits, at least 0 and, of a sub-pixel, at most
    MOST_KEEP_BITS; None where adaptive is.
    """
    if adaptive is not None and (not isinstance(adaptive, str) or adaptive not in ADAPTIVE):
        kind = ValueError if isinstance(adaptive, str) else TypeError
        raise kind(f"adaptive must be None, 'image' or 'sub-pixel', got {shown(adaptive)}")
    most = MOST_KEEP_BITS if adaptive == "sub-pixel" else math.inf
    if check_optional_number("threshold", threshold, 0.0, most) is not None and adaptive is None:
        raise ValueError(f"threshold={threshold!r} means nothing without adaptive='image' or 'sub-pixel'")


def check_within(within: Within | None, eps: int = DEFAULT_EPS) -> None:
    """Raise TypeError or ValueError unless ``within`` is None or a pair of uint8 tensors or arrays.

    eps: beside ranges it has to be the default.
    """
    if within is None:
        return
    expected = "within must be None or a pair (lower, upper) of uint8 tensors or arrays"
    if not isinstance(within, (tuple, list)):
        raise TypeError(f"{expected}, got {shown(within)}")
    if len(within) != 2:
        raise ValueError(f"{expected}, got {len(within)} of them")
    for bound in within:
        if not isinstance(bound, (Tensor, np.ndarray)):
            raise TypeError(f"{expected}, got {shown(bound)} in it")
        if bound.dtype not in (torch.uint8, np.uint8):
            raise TypeError(f"{expected}, got one of {bound.dtype}")
    if eps != DEFAULT_EPS:
        raise ValueError(f"eps={eps} means nothing beside within, which says which values may be chosen")


def ranges_of(within: Within, shape: torch.Size, device: torch.device | str = "cpu") -> Ranges:
    """Ranges that passed :func:`check_within`, for images of ``shape`` (N, C, H, W): uint8 of that shape both.

    ValueError unless their shapes broadcast to it and no least value is above the greatest.
    """
    found = []
    for name, bound in zip(("lower", "upper"), within, strict=True):
        values = torch.from_numpy(np.array(bound)) if isinstance(bound, np.ndarray) else bound.detach()
        try:
            found.append(values.to(device).expand(shape).contiguous())
        except RuntimeError:
            raise ValueError(
                f"within: {name} must broadcast to the images' shape {tuple(shape)}, got {tuple(values.shape)}"
            ) from None
    lower, upper = found
    _refuse(lower > upper, lower, "is the least value and", upper, "the greatest")
    return lower, upper


def _refuse(wrong: Tensor, values: Tensor, says: str, others: Tensor, say: str) -> None:
    """ValueError that names the first sub-pixel (N, C, H, W) at which ``wrong`` holds."""
    if bool(wrong.any()):
        place = tuple(wrong.nonzero()[0].tolist())
        raise ValueError(f"within: at {place} {int(values[place])} {says} {int(others[place])} {say}")


def greedy(
    grid: Tensor,
    model: PixelCNN,
    eps: int,
    adaptive: str | None,
    threshold: float | None,
    within: Within | None = None,
) -> Greedy:
    """The chooser that purifies uint8 images (N, C, H, W) under these settings, which :func:`purify` explains.

    ValueError for ranges that do not fit the images.
    """
    keep_bits = None
    if adaptive == "sub-pixel":
        keep_bits = SUB_PIXEL_THRESHOLD if threshold is None else float(threshold)
    chooser = Greedy(eps, keep_bits)
    if within is not None:
        ranges = ranges_of(within, grid.shape, grid.device)
        _refuse(grid < ranges[0], grid, "is what the image has, and", ranges[0], "the least value")
        _refuse(grid > ranges[1], grid, "is what the image has, and", ranges[1], "the greatest value")
        chooser = Greedy(keep_bits=keep_bits, within=ranges)
    if adaptive == "image":
        if threshold is None:
            threshold = IMAGE_THRESHOLD[grid.shape[1]]
        bits = bits_per_dim_alone(grid, model)
        if bits.isnan().any():
            raise ValueError("the model gives log-likelihoods that are not a number: it is broken")
        suspicious = (bits >= threshold).to(grid.device).reshape(-1, 1, 1, 1)
        lower, upper = chooser.ranges(grid)
        chooser = Greedy(within=(torch.where(suspicious, lower, grid), torch.where(suspicious, upper, grid)))
    return chooser
