"""Random search in the ball: what a gradient must beat, and a yardstick of an evaluation's attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_count
from .carlini_wagner import margin
from .climb import Climb, State, better, rowwise, seeds_of
from .defence_aware import finished, uniform_integers
from .grid_ascent import GridAscent, Target, target_of


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

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> _Search:
        return _Search(target_of(self.name, classifier), round(255.0 * eps), self.steps)


class _Search(Climb):
    """A trial at a step. A state has ``moved``, the best so far, in whole levels kept as floats, and its ``margin``."""

    def __init__(self, target: Target, radius: int, steps: int) -> None:
        super().__init__(steps, queries=target.views, gradients=0)
        self.target: Target = target
        self.radius: int = radius

    def begin(self, state: State) -> None:
        state["moved"] = (255.0 * state["x"]).round()
        state["margin"] = state["x"].new_full((len(state["x"]),), -torch.inf)

    @torch.no_grad()
    def step(self, state: State) -> Tensor | None:
        labels, trials = state["labels"], state["taken"]
        at = (255.0 * state["x"]).round()
        noise = uniform_integers(seeds_of(state, trials.tolist(), 0), at, self.radius)
        at = (at + rowwise(trials > 0) * noise).clamp(0.0, 255.0)
        logits = self.target.logits(at / 255.0, seeds_of(state, trials.tolist(), 1))
        found, wrong = -margin(logits, labels), finished(self.target, logits, labels)
        kept = better(found, state["margin"], wrong)
        state["moved"] = torch.where(rowwise(kept), at, state["moved"])
        state["margin"] = torch.where(kept, found, state["margin"])
        return wrong
