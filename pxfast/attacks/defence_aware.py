"""Attacks that know the defence and follow gradients: blind PGD, BPDA with and without EOT, joint, full gradient.

Where a purifier is stochastic, ``draws`` of its runs are averaged at every step (EOT, expectation over transformation);
a deterministic one is run once, whatever ``draws`` says, and an image is finished as soon as a step finds it
misclassified.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..adp.purifier import CPU_BATCH
from ..base.checks import check_choice, check_count, check_flag, check_number
from ..defences.defended import Defended, averaged
from ..tensors.seeds import derived_seeds
from .attack import BATCH
from .climb import Ascent
from .gradients import Loss, MeanGradient, cross_entropy_gradient, cross_entropy_slope, loss_gradient, mean
from .grid_ascent import STEP, STEPS, GridAscent, Target, target_of, the_differentiable, the_scored

TABLE_1 = "Yoon et al. 2021, Table 1"
DRAWS = 15  # of the published BPDA + EOT against ADP
PLACES = ("image", "purified")


def runs_of(target: Target, draws: int) -> int:
    """How often f is run at a step, for each view: ``draws`` times if it is stochastic."""
    return draws if target.stochastic else 1


def groups(runs: int, together: int) -> list[tuple[int, int]]:
    """The runs in groups of ``together``, at least 1, as the first one's number and how many they are."""
    together = max(1, together)
    return [(first, min(together, runs - first)) for first in range(0, runs, together)]


def purified_gradient(
    target: Target,
    x: Tensor,
    labels: Tensor,
    seeds: Sequence[int],
    runs: int,
    loss: Loss = cross_entropy_slope,
) -> tuple[Tensor, Tensor, Tensor]:
    """BPDA's gradient, that of g's loss at f(x); g(f(x)); f(x). All averaged over so many runs of f.

    Of several views the gradient is the sum of those at each.
    """
    purified = target.draws(x, seeds, runs)
    views = target.views
    gradient = MeanGradient(loss)
    logits: list[Tensor] = []
    for first, count in groups(runs, BATCH // (views * len(x))):
        with torch.enable_grad():
            at = torch.cat(purified[views * first : views * (first + count)]).detach().requires_grad_()
            each = [view for logits in target.each(at) for view in views_of(logits, count, views)]
            gradient.add(each, labels.repeat(count), at, count)
        logits += averaged([view.detach() for view in each]).chunk(count)
    return sum_of(gradient.mean().chunk(views)), mean(logits), mean(purified)


def views_of(logits: Tensor, runs: int, views: int) -> list[Tensor]:
    """The logits of each view, (runs * N, classes), of images of which each run has so many, one after the other."""
    if views == 1:
        return [logits]
    return [torch.cat(view) for view in zip(*(run.chunk(views) for run in logits.chunk(runs)), strict=True)]


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).sum(dim=0)


def finished(target: Target, logits: Tensor, labels: Tensor) -> Tensor | None:
    """Which images g(f(x)) gets wrong; None where that is random, and another run might get them right."""
    return None if target.stochastic else logits.argmax(1) != labels


def uniform_integers(seeds: Sequence[int], like: Tensor, radius: int) -> Tensor:
    """Integers uniform in -radius..radius, of the shape and device of ``like``, those of image i by seeds[i]."""
    shape = tuple(like.shape[1:])
    draws = [np.random.Generator(np.random.Philox(key=seed)).integers(-radius, radius + 1, shape) for seed in seeds]
    return torch.from_numpy(np.stack(draws)).to(like.device)


class BlindPGD(GridAscent):
    """PGD on the classifier alone, as if no purifier stood in front of it, from a uniformly random start in ±eps.

    steps: how many, at least 0. step: their size in grid levels, an integer of at least 1. random_start: False starts
    at the image itself. max_queries, max_gradients: what an image may cost of each, at least 0; None: no limit.
    TypeError or ValueError for others.

    Source: Yoon et al. 2021, Table 1, 'Classifier PGD', which is that of Madry et al. 2018.
    """

    name = "blind-pgd"
    source = (
        f"{TABLE_1}, 'Classifier PGD': that of Madry et al. 2018 on the classifier alone, which knows no "
        "purifier; from a uniformly random start, 40 steps of 2/255 as in the authors' code"
    )

    def __init__(
        self,
        *,
        steps: int = STEPS,
        step: int = STEP,
        random_start: bool = True,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(step, max_queries, max_gradients)
        self.steps: int = check_count("steps", steps)
        self.random_start: bool = check_flag("random_start", random_start)

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> Ascent:
        radius = round(255.0 * eps)
        bare = classifier.classifier if isinstance(classifier, Defended) else classifier
        if bare is classifier and any(isinstance(module, Defended) for module in classifier.modules()):
            raise ValueError(
                f"{self.name} attacks the classifier alone, got a module with a Defended inside: pass that itself"
            )

        def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, None]:
            return loss_gradient(bare, x, labels).sign(), None

        return Ascent(
            direction,
            round(255.0 * eps),
            steps=self.steps,
            step=self.step,
            queries=0,
            gradients=1,
            start=(lambda seeds, x: uniform_integers(seeds, x, radius)) if self.random_start else None,
        )


class BPDA(GridAscent):
    """BPDA: steps by the sign of the gradient at the purified image, taken straight through the purifier.

    It attacks a :class:`pxfast.defences.Defended` with at least one defence; ValueError for another classifier.

    steps: the most there may be, at least 0. step: their size in grid levels, an integer of at least 1. draws: over how
    many runs of a stochastic purifier the gradient is averaged, at least 1. max_queries, max_gradients: what an image
    may cost of each, at least 0; None: no limit. TypeError or ValueError for others.

    Source: Athalye et al. 2018, section 4.1; settings of Yoon et al. 2021, Table 1.
    """

    name = "bpda"
    knows_defences = True
    source = (
        f"Athalye et al. 2018; {TABLE_1}: the gradient at the purified image, straight through the purifier; 100 "
        "steps of 2/255 from the image itself"
    )

    def __init__(
        self,
        *,
        steps: int = 100,
        step: int = STEP,
        draws: int = 1,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(step, max_queries, max_gradients)
        self.steps: int = check_count("steps", steps)
        self.draws: int = check_count("draws", draws, 1)

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> Ascent:
        target = target_of(self.name, classifier)
        runs = runs_of(target, self.draws)

        def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            gradient, logits, _ = purified_gradient(target, x, labels, seeds, runs)
            return gradient.sign(), finished(target, logits, labels)

        return Ascent(
            direction,
            round(255.0 * eps),
            steps=self.steps,
            step=self.step,
            queries=runs * target.views,
            gradients=runs * target.backward,
        )


class BPDAEOT(BPDA):
    """:class:`BPDA` with EOT, expectation over transformation: the gradient is averaged over 15 runs of the purifier.

    steps: the most there may be, at least 0. step: their size in grid levels, an integer of at least 1. draws: over how
    many runs of a stochastic purifier the gradient is averaged, at least 1. max_queries, max_gradients: what an image
    may cost of each, at least 0; None: no limit. TypeError or ValueError for others.

    Source: Yoon et al. 2021, Table 1, 'BPDA 40+EOT'; Athalye et al. 2018, section 4.2. The authors' code sums the
    gradients' signs; this is their mean, as in the paper.
    """

    name = "bpda-eot"
    source: ClassVar[str] = (
        f"{TABLE_1}, 'BPDA 40+EOT': bpda with the gradient averaged over 15 runs of the purifier, 40 steps of "
        "2/255. The authors' code sums the gradients' signs; this is their mean, as in the paper"
    )

    def __init__(
        self,
        *,
        steps: int = STEPS,
        step: int = STEP,
        draws: int = DRAWS,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(steps=steps, step=step, draws=draws, max_queries=max_queries, max_gradients=max_gradients)


class _Joint(GridAscent):
    """Steps by the weighted signs of two directions: of a likelier image, and of the classifier's gradient.

    by_score: whether the first is the purifier's estimate of the gradient of log p, or f(x) - x.
    """

    by_score: ClassVar[bool]

    def __init__(
        self,
        *,
        steps: int = STEPS,
        step: int = STEP,
        weight: float = 0.5,
        at: str = "image",
        draws: int = DRAWS,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(step, max_queries, max_gradients)
        self.steps: int = check_count("steps", steps)
        self.weight: float = check_number("weight", weight, 0.0, 1.0)
        self.at: str = check_choice("at", at, PLACES)
        self.draws: int = check_count("draws", draws, 1)

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> Ascent:
        target = target_of(self.name, classifier)
        runs = runs_of(target, self.draws)

        def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            wrong = None
            if self.at == "purified":
                gradient, logits, purified = purified_gradient(target, x, labels, seeds, runs)
                wrong = finished(target, logits, labels)
            else:
                with torch.enable_grad():
                    at = x.detach().requires_grad_()
                    gradient = cross_entropy_gradient(target.each(at), labels, at)
                if not self.by_score or not target.stochastic:
                    drawn = target.draws(x, seeds, runs)
                    purified = mean(drawn)
                if not target.stochastic:
                    wrong = finished(target, target.seen_logits(drawn), labels)
            likelier = target.log_prob_gradient(x) if self.by_score else purified - x
            return self.weight * likelier.sign() + (1.0 - self.weight) * gradient.sign(), wrong

        return Ascent(
            direction,
            round(255.0 * eps),
            steps=self.steps,
            step=self.step,
            queries=0 if self.by_score and self.at == "image" and target.stochastic else runs * target.views,
            gradients=(runs * target.backward if self.at == "purified" else target.orientations) + self.by_score,
        )


class JointScore(_Joint):
    """The joint attack with the score: half the sign of the purifier's estimate of the gradient of log p, half that of
    the classifier's gradient.

    It attacks a :class:`pxfast.defences.Defended` whose only defence has ``log_prob_gradient``; ValueError for another.

    steps: the most there may be, at least 0. step: their size in grid levels, an integer of at least 1. weight: of the
    score's sign, in [0, 1]; the gradient's has the rest. at: where the classifier's gradient is taken: 'image', as in
    the table, or 'purified', at the purified image, as in the authors' code. draws: over how many runs of a stochastic
    purifier the latter is averaged, at least 1. max_queries, max_gradients: what an image may cost of each, at least 0;
    None: no limit. TypeError or ValueError for others.

    Source: Yoon et al. 2021, Table 1.
    """

    name = "joint-score"
    knows_defences = True
    source = (
        f"{TABLE_1}: half the sign of the score, half that of the classifier's gradient, 40 steps of 2/255. The "
        "table has the gradient at the image; at='purified' has it at the purified one, averaged over 15 runs, as the "
        "authors' code does"
    )
    by_score = True

    def check_defences(self, defences: Sequence[nn.Module]) -> None:
        the_scored(self.name, defences)


class JointFull(_Joint):
    """The joint attack with the purifier: half the sign of f(x) - x, half that of the classifier's gradient.

    It attacks a :class:`pxfast.defences.Defended` with at least one defence; ValueError for another classifier.

    steps: the most there may be, at least 0. step: their size in grid levels, an integer of at least 1. weight: of the
    sign of f(x) - x, in [0, 1]; the gradient's has the rest. at: where the classifier's gradient is taken: 'image', or
    'purified', at the purified image. draws: over how many runs of a stochastic purifier is averaged, at least 1.
    max_queries, max_gradients: what an image may cost of each, at least 0; None: no limit. TypeError or ValueError for
    others.

    Source: Yoon et al. 2021, Table 1.
    """

    name = "joint-full"
    knows_defences = True
    source = (
        f"{TABLE_1}: half the sign of f(x) - x, averaged over 15 runs of a stochastic purifier, half that of the "
        "classifier's gradient, 40 steps of 2/255; at='purified' has the gradient at the purified image"
    )
    by_score = False


class FullGradient(GridAscent):
    """Steps by the sign of the gradient through the classifier and the purifier in one.

    It attacks a :class:`pxfast.defences.Defended` whose defences all have ``differentiate``; ValueError for another.

    steps: the most there may be, at least 0. step: their size in grid levels, an integer of at least 1. draws: over how
    many runs of a stochastic purifier the gradient is averaged, at least 1. max_queries, max_gradients: what an image
    may cost of each, at least 0; None: no limit. TypeError or ValueError for others.

    Source: Yoon et al. 2021, Table 1.
    """

    name = "full-gradient"
    knows_defences = True
    source = (
        f"{TABLE_1}: the gradient of the classifier and the purifier in one, where the latter can be "
        "differentiated; averaged over 15 runs of a stochastic one, 40 steps of 2/255"
    )

    def __init__(
        self,
        *,
        steps: int = STEPS,
        step: int = STEP,
        draws: int = DRAWS,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(step, max_queries, max_gradients)
        self.steps: int = check_count("steps", steps)
        self.draws: int = check_count("draws", draws, 1)

    def check_defences(self, defences: Sequence[nn.Module]) -> None:
        super().check_defences(defences)
        the_differentiable(self.name, defences)

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> Ascent:
        target = target_of(self.name, classifier)
        runs = runs_of(target, self.draws)

        def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            gradient = MeanGradient(cross_entropy_slope)
            logits: list[Tensor] = []
            for first, count in groups(runs, CPU_BATCH // len(x)):  # what a purifier would fill up anyway
                own = [seed for run in range(first, first + count) for seed in derived_seeds(seeds, run)]
                with torch.enable_grad():
                    start = x.repeat(count, 1, 1, 1).requires_grad_()
                    each = [logits for view in target.differentiate(start, own) for logits in target.each(view)]
                    gradient.add(each, labels.repeat(count), start, count)
                logits += averaged([view.detach() for view in each]).chunk(count)
            return gradient.mean().sign(), finished(target, mean(logits), labels)

        return Ascent(
            direction,
            round(255.0 * eps),
            steps=self.steps,
            step=self.step,
            queries=runs * target.views,
            gradients=runs * target.backward,
        )
