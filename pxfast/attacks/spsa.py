"""SPSA (Uesato et al. 2018): a black-box attack that sees nothing but the defended classifier's logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..base.checks import check_count, check_steps_of_grid
from ..tensors.seeds import derived_seeds
from .carlini_wagner import margin
from .climb import Ascent
from .defence_aware import finished
from .grid_ascent import STEP, GridAscent, target_of

QUERIES_AT_ONCE = 512  # images that the purifier gets at once


def random_signs(seeds: Sequence[int], pairs: int, shape: tuple[int, ...]) -> Tensor:
    """Vectors drawn uniformly from {-1, 1}^D: (N, pairs, C, H, W) int8, those of image i by seeds[i]."""
    drawn = [np.random.Generator(np.random.Philox(key=s)).integers(0, 2, (pairs, *shape), dtype=np.int8) for s in seeds]
    return torch.from_numpy(2 * np.stack(drawn) - 1)


class SPSA(GridAscent):
    """SPSA: steps by the sign of a gradient estimated from the defended classifier's logits of random neighbours.

    It attacks a :class:`pxfast.defences.Defended` with at least one defence; ValueError for another classifier.

    steps: the most there may be, at least 0. step: their size in grid levels, an integer of at least 1. pairs: how many
    pairs of neighbours a step asks about, at least 1: the N of 2 N queries; where the purifier is deterministic one
    more asks whether the image is misclassified. delta: how far they are from the image in grid levels, an integer of
    at least 1. max_queries, max_gradients: what an image may cost of each, at least 0; None: no limit. TypeError or
    ValueError for others.

    Source: Uesato et al. 2018, algorithm 1, as in Yoon et al. 2021, Table 1.
    """

    name = "spsa"
    knows_defences = True
    source = (
        "Uesato et al. 2018 as in Yoon et al. 2021, Table 1: steps of 2/255 by the sign of the mean of "
        "(L(x + delta v) - L(x - delta v)) / (2 delta) v over N random v in {-1, 1}^D, L the best wrong logit minus "
        "the label's; delta 3 levels, which is Uesato's 0.01 on the grid (the table's 0.5 is no small step)"
    )
    needs_gradient = False

    def __init__(
        self,
        *,
        steps: int = 20,
        step: int = STEP,
        pairs: int = 64,
        delta: int = 3,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(step, max_queries, max_gradients)
        self.steps: int = check_count("steps", steps)
        self.pairs: int = check_count("pairs", pairs, 1)
        self.delta: int = check_steps_of_grid("delta", delta)

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> Ascent:
        target = target_of(self.name, classifier)

        @torch.no_grad()
        def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            wrong = None if target.stochastic else finished(target, target.logits(x, seeds), labels)
            levels = (255.0 * x).round()
            signs = random_signs(derived_seeds(seeds, 0), self.pairs, tuple(x.shape[1:])).to(x.device)
            total = torch.zeros_like(x)
            together = max(1, QUERIES_AT_ONCE // (2 * len(x)))
            for first in range(0, self.pairs, together):
                chosen = range(first, min(first + together, self.pairs))
                moves = torch.cat([side * self.delta * signs[:, pair].to(x) for pair in chosen for side in (1, -1)])
                count = 2 * len(chosen)
                asked = (levels.repeat(count, 1, 1, 1) + moves).clamp(0.0, 255.0) / 255.0
                own = [seed for pair in chosen for side in (1, 2) for seed in derived_seeds(seeds, pair, side)]
                logits = target.logits(asked, own)
                losses = -margin(logits, labels.repeat(count)).reshape(len(chosen), 2, len(x))
                slopes = (losses[:, 0] - losses[:, 1]) / (2.0 * self.delta)
                for slope, pair in zip(slopes, chosen, strict=True):
                    total += slope[:, None, None, None] * signs[:, pair]
            return total.sign(), wrong

        return Ascent(
            direction,
            round(255.0 * eps),
            steps=self.steps,
            step=self.step,
            queries=(2 * self.pairs + (not target.stochastic)) * target.views,
            gradients=0,
        )
