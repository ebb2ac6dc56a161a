"""What the density figures are drawn from."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Series:
    """N images of one kind before and after purification: bits/dim and p-values, (N,) float64 each."""

    name: str
    bits: np.ndarray
    p_values: np.ndarray
    purified_bits: np.ndarray
    purified_p_values: np.ndarray


@dataclasses.dataclass(frozen=True)
class DensityMeasurements:
    """What the figures show.

    real, samples: uint8 (n, C, H, W), test images and as many drawn from the model. train_bits: (M,) bits/dim of the
    training images that the p-values compare with. series: the clean test images first, then each attack's.
    baseline: the paper's Figure 5, bits/dim of the same few images, by what was done to them: (n,), of L-BFGS-B (n, S).
    settings: how it was measured, JSON-able.
    """

    real: Tensor
    samples: Tensor
    train_bits: np.ndarray
    series: list[Series]
    baseline: dict[str, np.ndarray]
    settings: dict[str, object]


def nats_to_bits_per_dim(log_likelihoods: Tensor, images: Tensor) -> np.ndarray:
    """Log-likelihoods in nats of images (N, C, H, W) as bits/dim, (N,) float64."""
    return (-log_likelihoods.double() / (math.log(2.0) * images[0].numel())).numpy()
