"""APGD through a purifier: Croce and Hein's step sizes and momentum, with the straight-through gradient of BPDA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_choice, check_count
from ..defences.defended import averaged
from .carlini_wagner import margin
from .climb import Climb, State, better, rowwise, seeds_of
from .defence_aware import finished, purified_gradient, runs_of, uniform_integers
from .gradients import Slope, cross_entropy_slope
from .grid_ascent import GridAscent, Target, target_of

LOSSES = ("both", "ce", "dlr")
MOMENTUM = 0.75  # the share of the new step; the rest repeats the last move
RISES = 0.75  # of a period's steps: with fewer, the step is halved
DLR_CLASSES = 3


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """The difference of logits ratio of logits (N, classes), classes >= 3: (N,). Croce and Hein 2020, equation 6."""
    ordered = logits.sort(dim=1).values
    return -margin(logits, labels) / (ordered[:, -1] - ordered[:, -3] + 1e-12)


def dlr_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the summed ratio of views' mean probabilities with respect to the logits of each view,
    (V, N, classes).
    """
    with torch.enable_grad():
        given = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(dlr(averaged(list(given)), labels).sum(), given)
    return gradient


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

    steps: of each run, at least 0: the images that it looks at, the start among them (the published code looks at one
    more). restarts: how many runs, at least 1. loss: 'ce', 'dlr' or 'both', which takes them
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

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> _Climb:
        target = target_of(self.name, classifier)
        losses = [("ce", "dlr")[run % 2] if self.loss == "both" else self.loss for run in range(self.restarts)]
        return _Climb(target, round(255.0 * eps), self.steps, losses, runs_of(target, self.draws))


class _Climb(Climb):
    """Runs one after the other, each from a start of its own. Values are whole grid levels, kept as floats.

    losses: 'ce' or 'dlr' of each run. draws: how often the purifier is run at a step. A state has ``moved``, the image
    with the highest margin of all runs, and that ``margin``. Of the run it has ``now`` and ``before``, the images of
    this step and of the last one; ``top``, the one of the highest loss, with this ``loss`` and ``slope``, the
    gradient's sign there; ``last``, the loss of the last step; ``rises``, how often it rose since ``checkpoint``, the
    step of the last one, where ``checked`` was the highest loss and ``halved`` says whether the step was; ``size``, in
    levels.
    """

    def __init__(self, target: Target, radius: int, steps: int, losses: list[str], draws: int) -> None:
        super().__init__(steps * len(losses), queries=draws * target.views, gradients=draws * target.backward)
        self.target: Target = target
        self.draws: int = draws
        self.radius: int = radius
        self.length: int = steps
        self.checkpoints: list[int] = checkpoints(steps)
        self.dlr: list[bool] = [loss == "dlr" for loss in losses]

    def begin(self, state: State) -> None:
        given = (255.0 * state["x"]).round()
        state["lowest"], state["highest"] = (given - self.radius).clamp(min=0.0), (given + self.radius).clamp(max=255.0)
        state["moved"] = given
        state["margin"] = given.new_full((len(given),), -torch.inf)
        state.update(self._run_from(given))

    def _run_from(self, start: Tensor) -> State:
        """What a run from these images begins with."""
        lowest, none = start.new_full((len(start),), -torch.inf), start.new_zeros(len(start))
        return {
            **dict.fromkeys(("now", "before", "top"), start),
            **dict.fromkeys(("loss", "last", "checked"), lowest),
            "slope": torch.zeros_like(start),
            "rises": none,
            "size": torch.full_like(none, 2.0 * self.radius),
            "halved": none.bool(),
            "checkpoint": none,
        }

    def _restart(self, state: State, chosen: Tensor, runs: list[int]) -> None:
        """Begin the next run of the chosen images, bool, at random in the ball. runs: the number of each image's."""
        noise = uniform_integers(seeds_of(state, runs), state["x"], self.radius).to(state["x"])
        start = torch.minimum(torch.maximum((255.0 * state["x"]).round() + noise, state["lowest"]), state["highest"])
        for name, values in self._run_from(start).items():
            state[name] = torch.where(_like(chosen, values), values, state[name])

    def step(self, state: State) -> Tensor | None:
        labels = state["labels"]
        runs, numbers = zip(*(divmod(taken, self.length) for taken in state["taken"].tolist()), strict=True)
        number = torch.tensor(numbers, device=labels.device)
        later = (number == 0) & (state["taken"] > 0)
        if bool(later.any()):
            self._restart(state, later, list(runs))
        by_dlr = torch.tensor([self.dlr[run] for run in runs], device=labels.device)

        def slope_of(logits: Tensor, labels: Tensor) -> Slope:
            chosen = by_dlr.repeat(len(labels) // len(by_dlr))
            slope = cross_entropy_slope(logits, labels)
            if not bool(chosen.any()) or logits.shape[-1] < DLR_CLASSES:
                return slope
            along = torch.where(chosen[:, None], dlr_gradient(logits, labels), slope.along)
            return Slope(along, slope.lost & ~chosen, slope.spare)

        at, seeds = state["now"], seeds_of(state, runs, numbers)
        gradient, logits, _ = purified_gradient(self.target, at / 255.0, labels, seeds, self.draws, slope_of)
        margin_now, wrong = -margin(logits, labels), finished(self.target, logits, labels)
        _keep(state, better(margin_now, state["margin"], wrong), moved=at, margin=margin_now)
        slope, found = gradient.sign(), self._losses(logits, labels, by_dlr)
        _keep(state, found > state["loss"], top=at, loss=found, slope=slope)
        state["rises"] = state["rises"] + ((found > state["last"]) & (number > 0)).float()
        state["last"] = found
        here = torch.tensor([each in self.checkpoints for each in numbers], device=labels.device)
        if bool(here.any()):
            slope = self._halve(state, here, number, slope)
        self._move(state, number, slope)
        return wrong

    @staticmethod
    def _losses(logits: Tensor, labels: Tensor, dlr_chosen: Tensor) -> Tensor:
        if not bool(dlr_chosen.any()) or logits.shape[1] < DLR_CLASSES:
            return F.cross_entropy(logits, labels, reduction="none")
        return torch.where(dlr_chosen, dlr(logits, labels), F.cross_entropy(logits, labels, reduction="none"))

    @staticmethod
    def _halve(state: State, here: Tensor, number: Tensor, slope: Tensor) -> Tensor:
        """Halve the steps of those images at a checkpoint, ``here``, whose loss no longer rises, and put these back to
        their best; the slopes then.
        """
        few = state["rises"] < RISES * (number - state["checkpoint"])
        stuck = ~state["halved"] & (state["checked"] >= state["loss"])
        halve = here & (few | stuck)
        _keep(state, here, halved=halve, checked=state["loss"])
        _keep(state, halve, size=(state["size"] / 2.0).clamp(min=1.0), now=state["top"], before=state["top"])
        _keep(state, here, rises=torch.zeros_like(state["rises"]), checkpoint=number.to(state["checkpoint"]))
        return torch.where(rowwise(halve), state["slope"], slope)

    @staticmethod
    def _move(state: State, number: Tensor, slope: Tensor) -> None:
        now, before, low, high = (state[name] for name in ("now", "before", "lowest", "highest"))
        aim = torch.minimum(torch.maximum(now + rowwise(state["size"]).round() * slope, low), high)
        share = rowwise(torch.where(number > 0, MOMENTUM, 1.0)).to(now)
        moved = (now + share * (aim - now) + (1.0 - share) * (now - before)).round()
        state["before"] = now
        state["now"] = torch.minimum(torch.maximum(moved, low), high)


def _keep(state: State, chosen: Tensor, **values: Tensor) -> None:
    """Values by name in the place of the chosen images' own, bool (n,)."""
    for name, value in values.items():
        state[name] = torch.where(_like(chosen, value), value, state[name])


def _like(chosen: Tensor, values: Tensor) -> Tensor:
    return chosen.reshape(-1, *[1] * (values.dim() - 1))
