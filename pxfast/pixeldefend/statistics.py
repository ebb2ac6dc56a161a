"""What a detector may compare: numbers of an image's surprise, in bits, at each of its sub-pixels.

A sub-pixel's surprise is -log2 of the probability that the density model gives its value, the ones before it known.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pixelcnn.likelihood import log_likelihood

RARE = 8.0  # bits: what is rarer than this is rarer than under uniform noise
BLOCK = 4
TAILS = ("lower", "both")


def spread(log_prob: Tensor) -> Tensor:
    """The variance of the surprise over the image's sub-pixels, in bits squared, negated."""
    return -bits(log_prob).flatten(1).var(1, correction=0)


def rare(log_prob: Tensor) -> Tensor:
    """The share of sub-pixels whose surprise is more than 8 bits, which is that of uniform noise; negated."""
    return -(bits(log_prob) > RARE).double().mean((1, 2, 3))


def block(log_prob: Tensor) -> Tensor:
    """The largest mean surprise of all blocks of 4x4 pixels, wherever they begin, in bits per sub-pixel; negated."""
    pixels = bits(log_prob).mean(1, keepdim=True)
    size = (min(BLOCK, pixels.shape[2]), min(BLOCK, pixels.shape[3]))
    return -F.avg_pool2d(pixels, size, stride=1).amax((1, 2, 3))


def bits(log_prob: Tensor) -> Tensor:
    """Surprises in bits of log-probabilities in nats, float64 of the same shape."""
    return -log_prob.double() / math.log(2.0)


# Each takes log-probabilities in nats, (N, C, H, W), and gives (N,) float64: the smaller, the less likely the image.
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "log-likelihood": log_likelihood,
    "spread": spread,
    "rare": rare,
    "block": block,
}


def measure_all(log_prob: Tensor) -> Tensor:
    """All of ``STATISTICS``, in their order: (N, S) float64 of log-probabilities in nats, (N, C, H, W)."""
    return torch.stack([statistic(log_prob) for statistic in STATISTICS.values()], dim=1)


def permutation_p_values(train: Tensor, found: Tensor, tail: str = "lower") -> Tensor:
    """Permutation p-values (M,) float64 of statistics ``found`` (M,), compared with those of training images (N,).

    tail: 'lower': (1 + #{i : train[i] <= found}) / (N + 1), which is small where the image is too unlikely. 'both':
    min(1, 2 min(lower, upper)), where upper counts train[i] >= found: small where it is too unlikely or too likely. A
    value that ties counts on both sides. found is rounded to the type of train first.
    """
    known, values = train.sort().values, found.to(train.dtype)
    lower = (1 + torch.searchsorted(known, values, right=True)).double() / (len(known) + 1)
    if tail == "lower":
        return lower
    upper = (1 + len(known) - torch.searchsorted(known, values)).double() / (len(known) + 1)
    return (2.0 * torch.minimum(lower, upper)).clamp(max=1.0)
