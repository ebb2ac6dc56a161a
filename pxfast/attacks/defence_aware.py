"""Attacks that know the defence and follow gradients: blind PGD, BPDA with and without EOT, joint, full gradient.

Where a purifier is stochastic, ``draws`` of its runs are averaged at every step (EOT, expectation over transformation);
a deterministic one is run once, whatever ``draws`` says, and an image is finished as soon as a step finds it
misclassified.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..defences.defended import Defended
from ..pixeldefend.purify import Purifier
from ..pixeldefend.relaxed import RelaxedPurifier
from ..tensors.seeds import derived_seeds
from .attack import Attack
from .gradients import input_gradient, loss_gradient
from .grid_ascent import BLOCK, STEP, Target, ascend, names, target_of
from .meter import Meter
from .sign_steps import bim_steps

STEPS, DRAWS = 40, 15  # of the published BPDA + EOT against ADP
PLACES = ("image", "purified")


def runs_of(target: Target, draws: int) -> int:
    """How often f is run at a step. ValueError unless ``draws`` is a positive integer."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws must be a positive integer, got {draws!r}")
    return draws if target.stochastic else 1


def mean(tensors: list[Tensor]) -> Tensor:
    """The mean of tensors of one shape; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)


def purified_gradient(
    target: Target, x: Tensor, labels: Tensor, seeds: Sequence[int], runs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """BPDA's gradient, that of g's cross-entropy at f(x); g(f(x)); f(x). All averaged over so many runs of f."""
    gradients, logits, purified = [], [], []
    for run in range(runs):
        at = target.purified(x, derived_seeds(seeds, run))
        with torch.enable_grad():
            at = at.detach().requires_grad_()
            found = target.classifier(at)
            gradients.append(input_gradient(F.cross_entropy(found, labels, reduction="sum"), at))
        logits.append(found.detach())
        purified.append(at.detach())
    return mean(gradients), mean(logits), mean(purified)


def finished(target: Target, logits: Tensor, labels: Tensor) -> Tensor | None:
    """Which images g(f(x)) gets wrong; None where that is random, and another run might get them right."""
    return None if target.stochastic else logits.argmax(1) != labels


def uniform_integers(seeds: Sequence[int], like: Tensor, radius: int) -> Tensor:
    """Integers uniform in -radius..radius, of the shape and device of ``like``, those of image i by seeds[i]."""
    shape = tuple(like.shape[1:])
    draws = [np.random.Generator(np.random.Philox(key=seed)).integers(-radius, radius + 1, shape) for seed in seeds]
    return torch.from_numpy(np.stack(draws)).to(like.device)


def _blind_pgd(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    meter: Meter,
    steps: int = STEPS,
    step: int = STEP,
    random_start: bool = True,
) -> Tensor:
    bare = classifier.classifier if isinstance(classifier, Defended) else classifier

    def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, None]:
        return loss_gradient(bare, x, labels).sign(), None

    return ascend(
        x,
        labels,
        eps,
        meter,
        direction,
        steps=steps,
        step=step,
        queries=0,
        gradients=1,
        start=uniform_integers(meter.seeds, x, round(255.0 * eps)) if random_start else None,
    )


def _bpda(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    meter: Meter,
    steps: int = 100,
    step: int = STEP,
    draws: int = 1,
    name: str = "bpda",
) -> Tensor:
    target = target_of(name, classifier)
    runs = runs_of(target, draws)

    def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        gradient, logits, _ = purified_gradient(target, x, labels, seeds, runs)
        return gradient.sign(), finished(target, logits, labels)

    return ascend(
        x,
        labels,
        eps,
        meter,
        direction,
        steps=steps,
        step=step,
        queries=runs,
        gradients=runs,
    )


def _joint(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    meter: Meter,
    steps: int = STEPS,
    step: int = STEP,
    weight: float = 0.5,
    at: str = "image",
    draws: int = DRAWS,
    name: str,
) -> Tensor:
    target = target_of(name, classifier)
    runs = runs_of(target, draws)
    if at not in PLACES:
        raise ValueError(f"at must be one of {', '.join(PLACES)}, got {at!r}")
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"weight must be in [0, 1], got {weight!r}")
    by_score = name == "joint-score"

    def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        wrong = None
        if at == "purified":
            gradient, logits, purified = purified_gradient(target, x, labels, seeds, runs)
            wrong = finished(target, logits, labels)
        else:
            gradient = loss_gradient(target.classifier, x, labels)
            if not by_score:
                purified = mean([target.purified(x, derived_seeds(seeds, run)) for run in range(runs)])
        likelier = target.score(x) if by_score else purified - x
        return weight * likelier.sign() + (1.0 - weight) * gradient.sign(), wrong

    return ascend(
        x,
        labels,
        eps,
        meter,
        direction,
        steps=steps,
        step=step,
        queries=0 if by_score and at == "image" else runs,
        gradients=(runs if at == "purified" else 1) + by_score,
    )


def _full_gradient(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    meter: Meter,
    steps: int = STEPS,
    step: int = STEP,
    draws: int = DRAWS,
) -> Tensor:
    target = target_of("full-gradient", classifier)
    runs = runs_of(target, draws)

    def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        gradients, logits = [], []
        for run in range(runs):
            with torch.enable_grad():
                start = x.detach().requires_grad_()
                found = target.classifier(target.differentiate(start, derived_seeds(seeds, run)))
                gradients.append(input_gradient(F.cross_entropy(found, labels, reduction="sum"), start))
            logits.append(found.detach())
        return mean(gradients).sign(), finished(target, mean(logits), labels)

    return ascend(
        x,
        labels,
        eps,
        meter,
        direction,
        steps=steps,
        step=step,
        queries=runs,
        gradients=runs,
    )


def _unrolled_bim(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    meter: Meter,
    steps: int | None = None,
    step: int = 1,
    temperature: float = 1.0,
) -> Tensor:
    target = target_of("unrolled-bim", classifier)
    defences = list(target.defended.defences)
    if len(defences) != 1 or not isinstance(defences[0], Purifier):
        raise ValueError(f"unrolled-bim needs a pxfast.Purifier as the only defence, got {names(defences)}")
    relaxed = RelaxedPurifier.of(defences[0], tuple(x.shape[1:]), temperature=temperature)

    def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, None]:
        with torch.enable_grad():
            start = x.detach().requires_grad_()
            logits = target.classifier(relaxed(start))
            return input_gradient(F.cross_entropy(logits, labels, reduction="sum"), start).sign(), None

    return ascend(
        x,
        labels,
        eps,
        meter,
        direction,
        steps=bim_steps(round(255.0 * eps)) if steps is None else steps,
        step=step,
        queries=1,
        gradients=1,
    )


TABLE_1 = "Yoon et al. 2021, Table 1"

blind_pgd = Attack(
    "blind-pgd",
    _blind_pgd,
    bounded=True,
    needs_gradient=True,
    source=f"{TABLE_1}, 'Classifier PGD': that of Madry et al. 2018 on the classifier alone, which knows no "
    "purifier; from a uniformly random start, 40 steps of 2/255 as in the authors' code",
    on_grid=True,
    metered=True,
)

bpda = Attack(
    "bpda",
    _bpda,
    bounded=True,
    needs_gradient=True,
    source=f"Athalye et al. 2018; {TABLE_1}: the gradient at the purified image, straight through the purifier; 100 "
    "steps of 2/255 from the image itself",
    on_grid=True,
    metered=True,
    block=BLOCK,
)

bpda_eot = Attack(
    "bpda-eot",
    functools.partial(_bpda, steps=STEPS, draws=DRAWS, name="bpda-eot"),
    bounded=True,
    needs_gradient=True,
    source=f"{TABLE_1}, 'BPDA 40+EOT': bpda with the gradient averaged over 15 runs of the purifier, 40 steps of "
    "2/255. The authors' code sums the gradients' signs; this is their mean, as in the paper",
    on_grid=True,
    metered=True,
    block=BLOCK,
)

joint_score = Attack(
    "joint-score",
    functools.partial(_joint, name="joint-score"),
    bounded=True,
    needs_gradient=True,
    source=f"{TABLE_1}: half the sign of the score, half that of the classifier's gradient, 40 steps of 2/255. The "
    "table has the gradient at the image; at='purified' has it at the purified one, averaged over 15 runs, as the "
    "authors' code does",
    on_grid=True,
    metered=True,
    block=BLOCK,
)

joint_full = Attack(
    "joint-full",
    functools.partial(_joint, name="joint-full"),
    bounded=True,
    needs_gradient=True,
    source=f"{TABLE_1}: half the sign of f(x) - x, averaged over 15 runs of a stochastic purifier, half that of the "
    "classifier's gradient, 40 steps of 2/255; at='purified' has the gradient at the purified image",
    on_grid=True,
    metered=True,
    block=BLOCK,
)

full_gradient = Attack(
    "full-gradient",
    _full_gradient,
    bounded=True,
    needs_gradient=True,
    source=f"{TABLE_1}: the gradient of the classifier and the purifier in one, where the latter can be "
    "differentiated; averaged over 15 runs of a stochastic one, 40 steps of 2/255",
    on_grid=True,
    metered=True,
)

unrolled_bim = Attack(
    "unrolled-bim",
    _unrolled_bim,
    bounded=True,
    needs_gradient=True,
    source="Song et al. 2018, section 4.4: BIM on PixelDefend unrolled end to end, with RelaxedPurifier in its place; "
    "for small images, since every sub-pixel is a pass of the network that the gradient goes through",
    on_grid=True,
    metered=True,
)
