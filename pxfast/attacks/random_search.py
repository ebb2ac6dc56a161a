"""Random search in the ball: what a gradient must beat, and a yardstick of an evaluation's attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_count
from ..base.progress import progress_of
from ..tensors.seeds import derived_seeds
from .carlini_wagner import margin
from .defence_aware import finished, uniform_integers
from .grid_ascent import GridAscent, target_of
from .meter import Meter


class RandomSearch(GridAscent):
    """Images drawn uniformly from the ball on the grid, of which the one with the highest margin is kept.

    It attacks a :class:`pxfast.defences.Defended` with at least one defence; ValueError for another classifier. The
    image itself is asked first.

    steps: how many images are asked, at least 0. max_queries, max_gradients: what an image may cost of each, at least
    0; None: no limit. TypeError or ValueError for others.

    Source: Carlini et al. 2019, 'On Evaluating Adversarial Robustness', section 5: gradients must beat it.
    """

    name = "random-search"
    knows_defences = True
    source = "Carlini et al. 2019, section 5: uniform draws from the ball, the best of 100; gradients must beat it"
    needs_gradient = False

    def __init__(self, *, steps: int = 100, max_queries: int | None = None, max_gradients: int | None = None) -> None:
        super().__init__(1, max_queries, max_gradients)
        self.steps: int = check_count("steps", steps)

    @torch.no_grad()
    def climb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float, meter: Meter) -> Tensor:
        target = target_of(self.name, classifier)
        given, radius = (255.0 * x).round(), round(255.0 * eps)
        best = given.clone()
        margins = torch.full((len(x),), -torch.inf, device=x.device)
        active = torch.arange(len(x), device=x.device)
        with progress_of(self.steps, "step", shown=meter.progress, leave=False) as shown:
            for trial in range(self.steps):
                if not len(active) or not meter.affords(active, 1, 0):
                    break
                seeds = [meter.seeds[i] for i in active.tolist()]
                at = given[active]
                if trial:
                    at = (at + uniform_integers(derived_seeds(seeds, trial, 0), at, radius)).clamp(0.0, 255.0)
                logits = target.classifier(target.purified(at / 255.0, derived_seeds(seeds, trial, 1)))
                meter.spend(active, 1, 0)
                found = -margin(logits, labels[active])
                better = found > margins[active]
                best[active[better]], margins[active[better]] = at[better], found[better]
                if (wrong := finished(target, logits, labels[active])) is not None:
                    active = active[~wrong]
                shown.advance()
        return best / 255.0
