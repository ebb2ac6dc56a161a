"""Attacks by the sign of the loss's gradient: FGSM, BIM and PGD in the L-infinity ball, and RAND, which needs none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .attack import Attack
from .gradients import loss_gradient, predicted

LABEL_RULES = ("given", "predicted")
LEVEL = 1.0 / 255.0  # a step of the grid


def attacked_labels(classifier: nn.Module, x: Tensor, labels: Tensor, label_rule: str) -> Tensor:
    """The labels that an attack leads away from: those 'given', or the 'predicted' ones of x."""
    if label_rule not in LABEL_RULES:
        raise ValueError(f"label_rule must be one of {', '.join(LABEL_RULES)}, got {label_rule!r}")
    return labels if label_rule == "given" else predicted(classifier, x)


def sign_steps(
    classifier: nn.Module, x: Tensor, start: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> Tensor:
    """From ``start``, ``steps`` times: a step of ``step`` up the loss by its gradient's sign, back into the ball.

    x, start: floating (N, C, H, W) in [0, 1]; the ball is ±eps around x within [0, 1]. Where a gradient is exactly
    zero, the value stays. Returns a tensor of x's shape.
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
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


def _rand(
    classifier: nn.Module, x: Tensor, labels: Tensor, eps: float, *, generators: Sequence[np.random.Generator]
) -> Tensor:
    levels = round(eps * 255.0)
    noise = [generator.integers(-levels, levels + 1, tuple(x.shape[1:])) for generator in generators]
    return (x + torch.from_numpy(np.stack(noise)).to(x) * LEVEL).clamp(0.0, 1.0)


def _fgsm(classifier: nn.Module, x: Tensor, labels: Tensor, eps: float, *, label_rule: str = "predicted") -> Tensor:
    return sign_steps(classifier, x, x, attacked_labels(classifier, x, labels, label_rule), eps, eps, 1)


def bim_steps(eps: int) -> int:
    """How many steps of one grid level BIM takes: floor(min(eps + 4, 1.25 eps)) (Kurakin et al. 2016)."""
    return math.floor(min(eps + 4, 1.25 * eps))


def _bim(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    steps: int | None = None,
    label_rule: str = "given",
) -> Tensor:
    steps = bim_steps(round(eps * 255.0)) if steps is None else steps
    return sign_steps(classifier, x, x, attacked_labels(classifier, x, labels, label_rule), eps, LEVEL, steps)


def _pgd(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float,
    *,
    generators: Sequence[np.random.Generator],
    steps: int = 20,
    step: float | None = None,
) -> Tensor:
    start = (x + uniform(generators, x, eps)).clamp(0.0, 1.0)
    return sign_steps(classifier, x, start, labels, eps, eps / 4.0 if step is None else step * LEVEL, steps)


rand = Attack(
    "rand",
    _rand,
    bounded=True,
    needs_gradient=False,
    source="Song et al. 2018, section 2.1: integers drawn uniformly from -eps..eps",
    on_grid=True,
    random=True,
)

fgsm = Attack(
    "fgsm",
    _fgsm,
    bounded=True,
    needs_gradient=True,
    source="Goodfellow et al. 2015; as PixelDefend's authors have it, away from the predicted label, so that the true "
    "one does not leak (label_rule='given': away from the given one)",
    on_grid=True,
)

bim = Attack(
    "bim",
    _bim,
    bounded=True,
    needs_gradient=True,
    source="Kurakin et al. 2016, away from the given label: steps of one level, floor(min(eps + 4, 1.25 eps)) of them",
    on_grid=True,
)

pgd = Attack(
    "pgd",
    _pgd,
    bounded=True,
    needs_gradient=True,
    source="Madry et al. 2018, away from the given label: from a uniformly random start, 20 steps of eps / 4",
    random=True,
)
