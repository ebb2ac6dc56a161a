"""What the attacks that know the defence have in common; they are the list of Yoon et al. (ICML 2021), Table 1.

They attack a :class:`pxfast.defences.Defended`: g(f(x)), its defences together being the purifier f, which may be any
(see :mod:`pxfast.defences.protocol`), and its classifier g. Every iterate, and hence the result, is on the grid 0..255
and within ±eps of the given image: steps are whole numbers of grid levels, and both projections are done in integers.

Each has the options ``max_queries`` and ``max_gradients``, limits for every image, and stops before a step that would
exceed one; what a query and a gradient are says :class:`pxfast.attacks.meter.Meter`. Random numbers, the attack's own
and a stochastic purifier's, come from the image and the seed alone, so that an image's result depends on no other.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..base.checks import check_optional_count, check_steps_of_grid
from ..base.progress import progress_of
from ..defences.defended import Defended
from ..defences.protocol import DifferentiablePurifier, ScoredPurifier, is_stochastic
from ..tensors.seeds import derived_seeds, image_seeds
from .attack import Attack, FixedBatch
from .meter import Meter
from .result import COSTS

STEPS, STEP = 40, 2  # a step of 2 levels is 2/255, as in Table 1


def names(modules: Iterable[nn.Module]) -> str:
    """Their classes, for an error."""
    return ", ".join(type(module).__name__ for module in modules)


def the_scored(name: str, defences: Sequence[nn.Module]) -> ScoredPurifier:
    """The only defence, which has a score. ValueError, naming the attack, for others."""
    if len(defences) != 1 or not isinstance(defences[0], ScoredPurifier):
        raise ValueError(f"{name} needs a single purifier with a score, got {names(defences) or 'none'}")
    return defences[0]


def the_differentiable(name: str, defences: Sequence[nn.Module]) -> list[DifferentiablePurifier]:
    """The defences, each of which can be differentiated. ValueError, naming the attack, for others."""
    found: list[DifferentiablePurifier] = []
    for defence in defences:
        if not isinstance(defence, DifferentiablePurifier):
            raise ValueError(f"{name} needs purifiers that can be differentiated, got {names([defence])}")
        found.append(defence)
    return found


@dataclasses.dataclass(frozen=True)
class Target:
    """A defended classifier taken apart: the purifier f and the classifier g behind it."""

    name: str
    defended: Defended
    classifier: nn.Module

    @property
    def stochastic(self) -> bool:
        """Whether f is random."""
        return bool(self.defended.runs)

    @torch.no_grad()
    def purified(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """f(x), one run of it: floating images (N, C, H, W) in [0, 1]."""
        return self.defended.defend(x, seeds)

    @torch.no_grad()
    def draws(self, x: Tensor, seeds: Sequence[int], runs: int) -> list[Tensor]:
        """f(x) so many times, each of seeds of its own: what :meth:`purified` gives for each."""
        return list(self.defended.draws(x, [derived_seeds(seeds, run) for run in range(runs)]))

    def log_prob_gradient(self, x: Tensor) -> Tensor:
        """The score of the only defence, at x. ValueError unless there is one such."""
        return the_scored(self.name, list(self.defended.defences)).log_prob_gradient(x).detach()

    def differentiate(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """f(x) with its own gradient. ValueError where a defence has none."""
        for place, defence in enumerate(the_differentiable(self.name, list(self.defended.defences))):
            x = defence.differentiate(x, derived_seeds(seeds, place) if is_stochastic(defence) else seeds)
        return x


def target_of(name: str, classifier: nn.Module) -> Target:
    """What the attack called ``name`` is given, taken apart. ValueError unless there is a purifier in it."""
    if not isinstance(classifier, Defended) or not len(classifier.defences):
        given = classifier.classifier if isinstance(classifier, (FixedBatch, Defended)) else classifier
        given = given.classifier if isinstance(given, FixedBatch) else given
        raise ValueError(
            f"{name} attacks a purifier and the classifier behind it: expected a pxfast.defences.Defended with at "
            f"least one defence, got a {names([given])} without any"
        )
    return Target(name, classifier, classifier.classifier)


Direction = Callable[[Tensor, Tensor, Sequence[int]], tuple[Tensor, Tensor | None]]


def ascend(
    x: Tensor,
    labels: Tensor,
    eps: float,
    meter: Meter,
    direction: Direction,
    *,
    steps: int,
    step: int,
    queries: int,
    gradients: int,
    start: Tensor | None = None,
) -> Tensor:
    """``steps`` times a step of ``step`` levels along a direction, back into the ball and into 0..255, all in integers.

    x: images (N, C, H, W) in [0, 1] on the grid. direction: of images, their labels and a seed for each of them, gives
    values in [-1, 1] of the images' shape, and which of the images the defended classifier gets wrong, bool, or None if
    that did not come out: these are finished. A step is rounded to whole levels, halves to even. queries, gradients:
    what a step costs; the attack ends before one that the meter does not afford. start: integers to add to x first.
    Returns images on the grid.
    """
    given, radius = (255.0 * x).round().int(), round(255.0 * eps)
    lowest, highest = (given - radius).clamp(min=0), (given + radius).clamp(max=255)
    moved = given if start is None else given + start.to(given)
    moved = torch.minimum(torch.maximum(moved, lowest), highest)
    active = torch.arange(len(x), device=x.device)
    with progress_of(steps, "step", shown=meter.progress, leave=False) as shown:
        for number in range(steps):
            if not len(active) or not meter.affords(active, queries, gradients):
                break
            seeds = derived_seeds([meter.seeds[i] for i in active.tolist()], number)
            way, wrong = direction(moved[active].float() / 255.0, labels[active], seeds)
            meter.spend(active, queries, gradients)
            if wrong is not None:
                active, way = active[~wrong], way[~wrong]
            change = (step * way).round().int()
            moved[active] = torch.minimum(torch.maximum(moved[active] + change, lowest[active]), highest[active])
            shown.advance()
    return moved.float() / 255.0


class GridAscent(Attack):
    """An attack whose every iterate is on the grid, and which counts the queries and gradients that an image costs.

    Its random numbers, those of a stochastic purifier included, come from the image and the seed alone. A subclass has
    :meth:`climb` in place of ``perturb``.
    """

    on_grid = True
    random = True
    block = 256  # enough for a purifier's own batches even when most of the images are done

    def __init__(self, step: int, max_queries: int | None, max_gradients: int | None) -> None:
        self.step: int = check_steps_of_grid("step", step)
        self.max_queries: int | None = check_optional_count("max_queries", max_queries)
        self.max_gradients: int | None = check_optional_count("max_gradients", max_gradients)

    @abc.abstractmethod
    def climb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float, meter: Meter) -> Tensor:
        """The attack itself, with the arguments of :meth:`perturb`; meter: takes the costs and has the seeds."""

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        return self._counted(classifier, x, labels, eps, seed, None, False)[0]

    def _counted(
        self,
        classifier: nn.Module,
        x: Tensor,
        labels: Tensor,
        eps: float,
        seed: int,
        targets: Tensor | None,
        progress: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        limits = {"max_queries": self.max_queries, "max_gradients": self.max_gradients}
        meter = Meter(image_seeds(x, seed), **limits, progress=progress)
        moved = self.climb(classifier, x, labels, eps, meter)
        return moved, {name: getattr(meter, name) for name in COSTS}
