"""APGD through a purifier: Croce and Hein's step sizes and momentum, with the straight-through gradient of BPDA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_choice, check_count
from ..base.progress import progress_of
from ..tensors.seeds import derived_seeds
from .carlini_wagner import margin
from .defence_aware import cross_entropy, finished, purified_gradient, runs_of, uniform_integers
from .grid_ascent import GridAscent, Target, target_of
from .meter import Meter

LOSSES = ("both", "ce", "dlr")
MOMENTUM = 0.75  # the share of the new step; the rest repeats the last move
RISES = 0.75  # of a period's steps: with fewer, the step is halved
DLR_CLASSES = 3


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio of logits (N, classes), classes >= 3: (N,). Croce and Hein 2020, equation 6."""
    ordered = logits.sort(dim=1).values
    return -margin(logits, labels) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def checkpoints(steps: int) -> list[int]:
    """The steps before which the step size is looked at: Croce and Hein 2020, section 3.1."""
    places, last, now = [], 0, 22  # in hundredths, which are exact
    while now < 100:
        places.append(-(-now * steps // 100))
        last, now = now, now + max(now - last - 3, 6)
    return sorted(set(places))


class APGDBPDA(GridAscent):
    """APGD through BPDA: steps along the straight-through gradient, whose size and start adapt, with restarts.

    It attacks a :class:`pxfast.defences.Defended` with at least one defence; ValueError for another classifier. The
    first run starts at the image, the others at random in the ball. Steps begin with 2 eps and are halved, never below
    one grid level, where the loss no longer rises; then the climb goes on from the best image so far.

    steps: of each run, at least 0. restarts: how many runs, at least 1. loss: 'ce', 'dlr' or 'both', which takes them
    in turns. DLR needs three classes; with fewer it is the cross-entropy. draws: over how many runs of a stochastic
    purifier the gradient is averaged, at least 1. max_queries, max_gradients: what an image may cost of each, at least
    0; None: no limit. TypeError or ValueError for others.

    Source: Croce and Hein 2020, algorithm 1; Athalye et al. 2018, section 4.1.
    """

    name = "apgd-bpda"
    knows_defences = True
    source = (
        "Croce and Hein 2020, algorithm 1: momentum 0.75, steps from 2 eps, halved at checkpoints; cross-entropy and "
        "DLR in turns; the gradient is that at the purified image (Athalye et al. 2018). Iterates are on the grid"
    )

    def __init__(
        self,
        *,
        steps: int = 100,
        restarts: int = 2,
        loss: str = "both",
        draws: int = 1,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(1, max_queries, max_gradients)
        self.steps: int = check_count("steps", steps)
        self.restarts: int = check_count("restarts", restarts, 1)
        self.loss: str = check_choice("loss", loss, LOSSES)
        self.draws: int = check_count("draws", draws, 1)

    def climb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float, meter: Meter) -> Tensor:
        target = target_of(self.name, classifier)
        best = (255.0 * x).round()
        margins = torch.full((len(x),), -torch.inf, device=x.device)
        active = torch.arange(len(x), device=x.device)
        with progress_of(self.steps * self.restarts, "step", shown=meter.progress, leave=False) as shown:
            for restart in range(self.restarts):
                if not len(active):
                    break
                loss = ("ce", "dlr")[restart % 2] if self.loss == "both" else self.loss
                run = _Run(target, x, labels, round(255.0 * eps), meter, runs_of(target, self.draws), loss, restart)
                for step in range(self.steps):
                    if not len(active) or not meter.affords(active, run.runs, run.runs):
                        break
                    active = run.step(step, active, self.steps, best, margins)
                    shown.advance()
        return best / 255.0


class _Run:
    """One climb from one start. Values are whole grid levels, kept as floats."""

    def __init__(
        self,
        target: Target,
        x: Tensor,
        labels: Tensor,
        radius: int,
        meter: Meter,
        runs: int,
        loss: str,
        number: int,
    ) -> None:
        self.target, self.labels, self.meter, self.runs, self.number = target, labels, meter, runs, number
        given = (255.0 * x).round()
        self.lowest, self.highest = (given - radius).clamp(min=0.0), (given + radius).clamp(max=255.0)
        self.now = given
        if number:
            start = uniform_integers(derived_seeds(meter.seeds, number), x, radius).to(x)
            self.now = torch.minimum(torch.maximum(given + start, self.lowest), self.highest)
        self.before, self.top = self.now.clone(), self.now.clone()
        self.now = self.now.clone()
        self.slope: Tensor = torch.zeros_like(given)  # the gradient's sign at the best image of this run
        self.losses: Tensor = torch.full((len(x),), -torch.inf, device=x.device)  # the highest of this run
        self.last: Tensor = self.losses.clone()
        self.rises: Tensor = torch.zeros(len(x), device=x.device)
        self.size: Tensor = torch.full((len(x),), 2.0 * radius, device=x.device)
        self.checked: Tensor = self.losses.clone()  # the highest loss at the last checkpoint
        self.halved: Tensor = torch.zeros(len(x), dtype=torch.bool, device=x.device)  # there
        self.checkpoint = 0
        self.dlr: bool = loss == "dlr"

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return dlr(logits, labels) if self.dlr and logits.shape[1] >= DLR_CLASSES else cross_entropy(logits, labels)

    def step(self, number: int, active: Tensor, steps: int, best: Tensor, margins: Tensor) -> Tensor:
        """Look at the active images, int64 indices, and move them. Gives those that are not finished.

        best, margins: the image with the highest margin of all runs, and this margin; both are changed in place.
        """
        labels = self.labels[active]
        seeds = derived_seeds([self.meter.seeds[i] for i in active.tolist()], self.number, number)
        at = self.now[active]
        gradient, logits, _ = purified_gradient(self.target, at / 255.0, labels, seeds, self.runs, self._loss)
        self.meter.spend(active, self.runs, self.runs)
        margin_now = -margin(logits, labels)
        better = active[margin_now > margins[active]]
        best[better], margins[better] = self.now[better], margin_now[margin_now > margins[active]]
        slope, found = gradient.sign(), self._loss(logits, labels)
        higher = found > self.losses[active]
        chosen = active[higher]
        self.top[chosen], self.losses[chosen], self.slope[chosen] = at[higher], found[higher], slope[higher]
        self.rises[active] += (found > self.last[active]).float()
        self.last[active] = found
        if (wrong := finished(self.target, logits, labels)) is not None:
            active, slope = active[~wrong], slope[~wrong]
        if number in checkpoints(steps):
            slope = self._halve(number, active, slope)
        self._move(number, active, slope)
        return active

    def _halve(self, number: int, active: Tensor, slope: Tensor) -> Tensor:
        """Halve the steps of images whose loss no longer rises, and put these back to their best; the slopes there."""
        few = self.rises[active] < RISES * (number - self.checkpoint)
        stuck = ~self.halved[active] & (self.checked[active] >= self.losses[active])
        halve = few | stuck
        self.halved[active], self.checked[active] = halve, self.losses[active]
        chosen = active[halve]
        self.size[chosen] = (self.size[chosen] / 2.0).clamp(min=1.0)
        self.now[chosen] = self.top[chosen]
        self.before[chosen] = self.top[chosen]
        self.rises[active] = 0.0
        self.checkpoint = number
        return torch.where(halve[:, None, None, None], self.slope[active], slope)

    def _move(self, number: int, active: Tensor, slope: Tensor) -> None:
        now, before = self.now[active], self.before[active]
        low, high = self.lowest[active], self.highest[active]
        aim = torch.minimum(torch.maximum(now + self.size[active, None, None, None].round() * slope, low), high)
        share = MOMENTUM if number else 1.0
        moved = (now + share * (aim - now) + (1.0 - share) * (now - before)).round()
        self.before[active] = now
        self.now[active] = torch.minimum(torch.maximum(moved, low), high)
