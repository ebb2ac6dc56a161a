"""What a certification found: counts of votes, labels and radii."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from ..base.checks import check_number

ABSTAINS = -1  # in the place of a prediction
NORMS = {"l1": 255.0, "l2": 1.0}  # by norm: how many units of its radii the range [0, 1] has


@dataclasses.dataclass(frozen=True)
class Certificates:
    """Labels of N images that no change within a radius alters.

    labels: int64 (N,), the true ones. predictions: int64 (N,), of the smoothed classifier; -1 where it abstains. radii:
    float64 (N,), 0 where it abstains: for norm 'l1' in grey levels, summed over all sub-pixels of images on the grid of
    0..255; for 'l2' in units of [0, 1]. counts: int64 (N, classes), the votes. norm: 'l1' or 'l2'. settings: how they
    were made, JSON-able.
    """

    labels: Tensor
    predictions: Tensor
    radii: Tensor
    counts: Tensor
    norm: str
    settings: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """Fraction in [0, 1] of images that the smoothed classifier gives their label; NaN for no images."""
        return self.certified_accuracy(0.0)

    @property
    def right(self) -> Tensor:
        """Which images the smoothed classifier gives their label: bool (N,)."""
        return self.predictions == self.labels

    def certified_accuracy(self, radius: float) -> float:
        """Fraction in [0, 1] of images whose label is right and stays so within ``radius``, in the units of ``radii``.

        NaN for no images. TypeError or ValueError unless ``radius`` is a number of at least 0.
        """
        radius = check_number("radius", radius, 0.0)
        held = self.right & (self.radii >= radius)
        return float(held.double().mean()) if len(held) else math.nan

    def curve(self) -> tuple[list[float], list[float]]:
        """Radii at which the certified accuracy falls, from 0 on, and the certified accuracy there."""
        at = torch.cat((torch.zeros(1, dtype=torch.float64), self.radii[self.right])).unique().tolist()
        return at, [self.certified_accuracy(radius) for radius in at]

    @property
    def unit(self) -> float:
        """How many units of ``radii`` the range [0, 1] of a sub-pixel has: 255 grey levels, or 1."""
        return NORMS[self.norm]
