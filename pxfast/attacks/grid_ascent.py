"""What the attacks that know the defence have in common; they are the list of Yoon et al. (ICML 2021), Table 1.

They attack a :class:`pxfast.defences.Defended`: g(f(x)), its defences together being the purifier f, which may be any
(see :mod:`pxfast.defences.protocol`), and its classifier g. Every iterate, and hence the result, is on the grid 0..255
and within ±eps of the given image: steps are whole numbers of grid levels, and both projections are done in integers.

Each has the options ``max_queries`` and ``max_gradients``, limits for every image, and stops before a step that would
exceed one; what a query and a gradient are says :class:`pxfast.attacks.climb.Climb`. Random numbers, the attack's own
and a stochastic purifier's, come from the image and the seed alone, so that an image's result depends on no other.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..base.checks import check_optional_count, check_steps_of_grid
from ..defences.defended import Chain, Defended, averaged
from ..defences.protocol import DifferentiablePurifier, ScoredPurifier, is_stochastic
from ..tensors.seeds import derived_seeds, image_seeds
from .attack import BATCH, Attack, FixedBatch, blocks, settled, to_float
from .climb import Climb, State, climbed
from .gradients import predicted
from .result import COSTS, AttackResult

STEPS, STEP = 40, 2  # a step of 2 levels is 2/255, as in Table 1
AT_ONCE = (2 * BATCH, 8 * BATCH)  # images at work on a CPU, whose engine wants no more, and on a GPU
GROUP = 2 * BATCH  # images that arrive together
RELEASED = BATCH  # images that are given together when they are finished, so that they fill the classifier's batches


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
    """A defended classifier taken apart: the purifier f and the classifier g behind it, and of how many views.

    What is said of f(x) is said of each view: a list of them has the views of a run one after the other.
    """

    name: str
    defended: Defended

    @property
    def stochastic(self) -> bool:
        """Whether f is random."""
        return bool(self.defended.runs)

    @property
    def views(self) -> int:
        """How many views of an image g sees."""
        return self.defended.view_count

    @property
    def orientations(self) -> int:
        """How many of an image and its mirror image g sees of each view."""
        return self.defended.orientations

    @property
    def backward(self) -> int:
        """How many images go backwards through g for one run of f."""
        return self.views * self.orientations

    def classifier(self, purified: Tensor) -> Tensor:
        """g's logits (N, classes) of one view."""
        return self.defended.classify(purified)

    def each(self, purified: Tensor) -> list[Tensor]:
        """g's logits (N, classes) of one view as it is and, where g sees them, of its mirror image."""
        return self.defended.classify_each(purified)

    @torch.no_grad()
    def logits(self, x: Tensor, seeds: Sequence[int]) -> Tensor:
        """g(f(x)), one run of it: (N, classes)."""
        (seen,) = self.defended.seen_draws(x, [seeds])
        return self.seen_logits(seen)

    @torch.no_grad()
    def seen_logits(self, seen: Sequence[Tensor]) -> Tensor:
        """g's logits (N, classes) of all views of one run."""
        return averaged([self.classifier(view) for view in seen])

    @torch.no_grad()
    def draws(self, x: Tensor, seeds: Sequence[int], runs: int) -> list[Tensor]:
        """f(x) so many times, each of seeds of its own: floating images (N, C, H, W) in [0, 1]."""
        each = self.defended.seen_draws(x, [derived_seeds(seeds, run) for run in range(runs)])
        return [view for seen in each for view in seen]

    def log_prob_gradient(self, x: Tensor) -> Tensor:
        """The score of the only defence, at x. ValueError unless there is one such."""
        defences = [defence for chain in self.defended.chains for defence in chain]
        return the_scored(self.name, defences).log_prob_gradient(x).detach()

    def differentiate(self, x: Tensor, seeds: Sequence[int]) -> tuple[Tensor, ...]:
        """f(x) with its own gradient. ValueError where a defence has none."""
        own = list(seeds) * self.defended.orientations

        def purify(chain: Chain, x: Tensor) -> Tensor:
            for place, defence in enumerate(the_differentiable(self.name, list(chain))):
                x = defence.differentiate(x.clone(), derived_seeds(own, place) if is_stochastic(defence) else own)
            return x

        return self.defended.seen(x, purify)


def target_of(name: str, classifier: nn.Module) -> Target:
    """What the attack called ``name`` is given, taken apart. ValueError unless there is a purifier in it."""
    if not isinstance(classifier, Defended) or not len(classifier.defences):
        given = classifier.classifier if isinstance(classifier, (FixedBatch, Defended)) else classifier
        given = given.classifier if isinstance(given, FixedBatch) else given
        raise ValueError(
            f"{name} attacks a purifier and the classifier behind it: expected a pxfast.defences.Defended with at "
            f"least one defence, got a {names([given])} without any"
        )
    return Target(name, classifier)


class GridAscent(Attack):
    """An attack whose every iterate is on the grid, and which counts the queries and gradients that an image costs.

    Its random numbers, those of a stochastic purifier included, come from the image and the seed alone. A subclass has
    :meth:`climb` in place of ``perturb``. Images that are finished make room for others, whatever ``block`` says.
    """

    on_grid = True
    random = True

    def __init__(self, step: int, max_queries: int | None, max_gradients: int | None) -> None:
        self.step: int = check_steps_of_grid("step", step)
        self.max_queries: int | None = check_optional_count("max_queries", max_queries)
        self.max_gradients: int | None = check_optional_count("max_gradients", max_gradients)

    @abc.abstractmethod
    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> Climb:
        """The attack itself: how it moves images (N, C, H, W) of shape ``image_shape`` = (C, H, W).

        classifier, eps: as :meth:`perturb` takes them.
        """

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        moved = torch.empty_like(x)
        arrivals = [{"x": x, "labels": labels, "places": torch.arange(len(x), device=x.device)}] if len(x) else []
        for state, _ in self._climbed(classifier, arrivals, x, eps, seed, 1):
            moved[state["places"]] = state["moved"].to(x) / 255.0
        return moved

    def _climbed(
        self,
        classifier: nn.Module,
        arrivals: Iterable[State],
        like: Tensor,
        eps: float,
        seed: int,
        released: int,
    ) -> Iterator[tuple[State, float]]:
        """Images as they are finished, ``queries`` and ``gradients`` in their state: what each cost; and the seconds.

        arrivals: images with their labels. like: images of their shape and device.
        """
        C, H, W = like.shape[1:]
        climb = self.climb(classifier, (C, H, W), eps)
        limits = ((self.max_queries, climb.queries), (self.max_gradients, climb.gradients))
        steps = min([climb.steps, *(most // cost for most, cost in limits if most is not None and cost)])
        seeded = ({**group, "seeds": torch.tensor(image_seeds(group["x"], seed)).to(like.device)} for group in arrivals)
        found = climbed(climb, seeded, steps=steps, at_once=AT_ONCE[like.is_cuda], released=released)
        for state, seconds in found:
            yield {**state, **{cost: state["taken"] * getattr(climb, cost) for cost in COSTS}}, seconds

    def _pieces(
        self,
        classifier: FixedBatch | Defended,
        images: Tensor,
        labels: Tensor | None,
        targets: Tensor | None,
        eps: int | None,
        seed: int,
        judge: bool,
    ) -> Iterator[tuple[Tensor, AttackResult]]:
        def arrivals() -> Iterator[State]:
            for chosen in blocks(len(images), GROUP):
                x = to_float(images[chosen])
                known = predicted(classifier, x) if labels is None else labels[chosen]
                yield {"x": x, "labels": known, "places": torch.arange(len(images), device=images.device)[chosen]}

        bound = 1.0 if eps is None else eps / 255.0
        for state, seconds in self._climbed(classifier, arrivals(), images, bound, seed, RELEASED):
            places, x, known = state["places"], state["x"], state["labels"]
            clean = None
            if judge:
                clean = torch.zeros_like(known, dtype=torch.bool)
                if labels is not None:
                    clean = predicted(classifier, x) != known
            result = settled(classifier, images[places], x, state["moved"].to(x) / 255.0, known, clean, eps)
            costs = {cost: state[cost].cpu() for cost in COSTS}
            yield places.cpu(), dataclasses.replace(result, **costs, seconds=seconds)
