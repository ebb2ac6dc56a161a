"""Attacks by the sign of the loss's gradient: FGSM, BIM and PGD in the L-infinity ball, and RAND, which needs none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..base.checks import (
    check_choice,
    check_count,
    check_eps,
    check_levels,
    check_optional_count,
)
from .attack import Attack, image_generators
from .gradients import loss_gradient, predicted

LABEL_RULES = ("given", "predicted")
LEVEL = 1.0 / 255.0  # a step of the grid


def attacked_labels(classifier: nn.Module, x: Tensor, labels: Tensor, label_rule: str) -> Tensor:
    """The labels that an attack leads away from: those 'given', or the 'predicted' ones of x."""
    return labels if label_rule == "given" else predicted(classifier, x)


def sign_steps(
    classifier: nn.Module, x: Tensor, start: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> Tensor:
    """From ``start``, ``steps`` times: a step of ``step`` up the loss by its gradient's sign, back into the ball.

    x, start: floating (N, C, H, W) in [0, 1]; the ball is ±eps around x within [0, 1]. Where a gradient is exactly
    zero, the value stays. Returns a tensor of x's shape.
    """
    moved = start
    for _ in range(steps):
        moved = moved + step * loss_gradient(classifier, moved, labels).sign()
        moved = x + (moved - x).clamp(-eps, eps)
        moved = moved.clamp(0.0, 1.0)
    return moved


def uniform(generators: Sequence[np.random.Generator], x: Tensor, eps: float) -> Tensor:
    """Uniform noise in ±eps of x's shape, type and device, an image from each generator."""
    noise = [generator.uniform(-eps, eps, tuple(x.shape[1:])) for generator in generators]
    return torch.from_numpy(np.stack(noise)).to(x)


def bim_steps(eps: int) -> int:
    """How many steps of one grid level BIM takes: floor(min(eps + 4, 1.25 eps)) (Kurakin et al. 2016).

    eps: 0..255. TypeError or ValueError for others.
    """
    eps = check_eps(eps)
    return math.floor(min(eps + 4, 1.25 * eps))


class Rand(Attack):
    """RAND: integers drawn uniformly from -eps..eps and added to the image, clipped to 0..255.

    It asks the classifier nothing and has no options.

    Source: Song et al. 2018 (PixelDefend), section 2.1.
    """

    name = "rand"
    source = "Song et al. 2018, section 2.1: integers drawn uniformly from -eps..eps"
    needs_gradient = False
    on_grid = True
    random = True

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        levels = round(eps * 255.0)
        noise = [g.integers(-levels, levels + 1, tuple(x.shape[1:])) for g in image_generators(x, seed)]
        return (x + torch.from_numpy(np.stack(noise)).to(x) * LEVEL).clamp(0.0, 1.0)


class FGSM(Attack):
    """The fast gradient sign method: one step of eps by the sign of the cross-entropy's gradient, clipped to 0..255.

    label_rule: the label that it leads away from: 'predicted', the classifier's own, so that the true one does not
    leak, or 'given', the one that it is called with. TypeError or ValueError for another.

    Source: Goodfellow et al. 2015; away from the predicted label as in the code of Song et al. 2018 (PixelDefend).
    """

    name = "fgsm"
    source = (
        "Goodfellow et al. 2015; as PixelDefend's authors have it, away from the predicted label, so that the true "
        "one does not leak (label_rule='given': away from the given one)"
    )
    on_grid = True

    def __init__(self, *, label_rule: str = "predicted") -> None:
        self.label_rule: str = check_choice("label_rule", label_rule, LABEL_RULES)

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        return sign_steps(classifier, x, x, attacked_labels(classifier, x, labels, self.label_rule), eps, eps, 1)


class BIM(Attack):
    """The basic iterative method: steps of one grid level by the gradient's sign, each back into ±eps and 0..255.

    steps: how many, at least 0; None: floor(min(eps + 4, 1.25 eps)). label_rule: the label that it leads away from:
    'given', the one that it is called with, or 'predicted', the classifier's own. TypeError or ValueError for others.

    Source: Kurakin et al. 2016, section 2.2; Song et al. 2018 (PixelDefend), section 2.1.
    """

    name = "bim"
    source = "Kurakin et al. 2016, away from the given label: steps of one level, floor(min(eps + 4, 1.25 eps)) of them"
    on_grid = True

    def __init__(self, *, steps: int | None = None, label_rule: str = "given") -> None:
        self.steps: int | None = check_optional_count("steps", steps)
        self.label_rule: str = check_choice("label_rule", label_rule, LABEL_RULES)

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        steps = bim_steps(round(eps * 255.0)) if self.steps is None else self.steps
        return sign_steps(classifier, x, x, attacked_labels(classifier, x, labels, self.label_rule), eps, LEVEL, steps)


class PGD(Attack):
    """Projected gradient descent: from a uniformly random start in ±eps, steps by the gradient's sign, away from the
    given label, each back into ±eps and 0..255.

    steps: how many, at least 0. step: their size in grid levels, a number of at least 1/8; None: eps / 4. TypeError or
    ValueError for others.

    Source: Madry et al. 2018, section 2.1.
    """

    name = "pgd"
    source = "Madry et al. 2018, away from the given label: from a uniformly random start, 20 steps of eps / 4"
    random = True

    def __init__(self, *, steps: int = 20, step: float | None = None) -> None:
        self.steps: int = check_count("steps", steps)
        self.step: float | None = None if step is None else check_levels("step", step)

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        start = (x + uniform(image_generators(x, seed), x, eps)).clamp(0.0, 1.0)
        step = eps / 4.0 if self.step is None else self.step * LEVEL
        return sign_steps(classifier, x, start, labels, eps, step, self.steps)
