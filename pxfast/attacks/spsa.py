"""SPSA (Uesato et al. 2018): a black-box attack that sees nothing but the defended classifier's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..tensors.seeds import derived_seeds
from .attack import Attack
from .carlini_wagner import margin
from .grid_ascent import BLOCK, STEP, ascend, target_of
from .meter import Meter

QUERIES_AT_ONCE = 512  # images that the purifier gets at once


def random_signs(seeds: Sequence[int], pairs: int, shape: tuple[int, ...]) -> Tensor:
    """Vectors drawn uniformly from {-1, 1}^D: (N, pairs, C, H, W) int8, those of image i by seeds[i]."""
    drawn = [np.random.Generator(np.random.Philox(key=s)).integers(0, 2, (pairs, *shape), dtype=np.int8) for s in seeds]
    return torch.from_numpy(2 * np.stack(drawn) - 1)


def _spsa(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    meter: Meter,
    steps: int = 20,
    step: int = STEP,
    pairs: int = 64,
    delta: int = 3,
) -> Tensor:
    """pairs: N of the 2 N queries a step. delta: how far from the image they are, in levels."""
    target = target_of("spsa", classifier)
    for name, value in (("pairs", pairs), ("delta", delta)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")

    @torch.no_grad()
    def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, None]:
        levels = (255.0 * x).round()
        signs = random_signs(derived_seeds(seeds, 0), pairs, tuple(x.shape[1:])).to(x.device)
        total = torch.zeros_like(x)
        together = max(1, QUERIES_AT_ONCE // (2 * len(x)))
        for first in range(0, pairs, together):
            chosen = range(first, min(first + together, pairs))
            moves = torch.cat([side * delta * signs[:, pair].to(x) for pair in chosen for side in (1, -1)])
            count = 2 * len(chosen)
            asked = (levels.repeat(count, 1, 1, 1) + moves).clamp(0.0, 255.0) / 255.0
            own = [seed for pair in chosen for side in (1, 2) for seed in derived_seeds(seeds, pair, side)]
            logits = target.classifier(target.purified(asked, own))
            losses = -margin(logits, labels.repeat(count)).reshape(len(chosen), 2, len(x))
            slopes = (losses[:, 0] - losses[:, 1]) / (2.0 * delta)
            for slope, pair in zip(slopes, chosen, strict=True):
                total += slope[:, None, None, None] * signs[:, pair]
        return total.sign(), None

    return ascend(
        x,
        labels,
        eps,
        meter,
        direction,
        steps=steps,
        step=step,
        queries=2 * pairs,
        gradients=0,
    )


spsa = Attack(
    "spsa",
    _spsa,
    bounded=True,
    needs_gradient=False,
    source="Uesato et al. 2018 as in Yoon et al. 2021, Table 1: steps of 2/255 by the sign of the mean of "
    "(L(x + delta v) - L(x - delta v)) / (2 delta) v over N random v in {-1, 1}^D, L the best wrong logit minus the "
    "label's; delta 3 levels, which is Uesato's 0.01 on the grid (the table's 0.5 is no small step)",
    on_grid=True,
    metered=True,
    block=BLOCK,
)
