"""From an attack's floating-point images to the integer grid, without losing what they achieved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .gradients import predicted

# A perturbation that rounding disarmed is stretched step by step, to at most 9.4 times its length.
STRETCHES = tuple(1.15**k for k in range(1, 17))


def to_grid(images: Tensor, moved: Tensor, eps: int | None) -> Tensor:
    """Floating images in [0, 1] to the nearest uint8 ones within ±eps of the given ones."""
    rounded = (moved.float() * 255.0).round().clamp(0, 255).to(torch.int16)
    if eps is not None:
        given = images.to(torch.int16)
        rounded = torch.minimum(torch.maximum(rounded, given - eps), given + eps)
    return rounded.to(torch.uint8)


def reached(prediction: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Which predictions an attack wanted, bool (N,): its targets, or without any each class but the label."""
    return prediction != labels if targets is None else prediction == targets


def rearm(
    classifier: nn.Module,
    images: Tensor,
    moved: Tensor,
    grid: Tensor,
    labels: Tensor,
    eps: int | None,
    unrounded: Tensor,
    nearest: Tensor,
    targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where rounding alone made an attack fail, stretch its perturbation until the rounded image has what it wanted.

    moved: floating results of the attack on ``images``; grid: the same, rounded. unrounded, nearest: bool (N,), which
    of these :func:`reached` what the attack wanted of the labels and targets, int64 (N,). Stretched images stay within
    ±eps and 0..255. Last of all, every changed value is rounded away from the given one. Returns the images, those that
    nothing helped rounded to nearest, and which ones have reached it.
    """
    grid, fooled = grid.clone(), nearest.clone()
    given = images.float() / 255.0
    change = moved - given
    away = (change * 255.0).abs().sub(1e-3).ceil().clamp_min(0.0) * change.sign() / 255.0
    for candidate in (*(change * stretch for stretch in STRETCHES), away):
        disarmed = (unrounded & ~fooled).nonzero()[:, 0]
        if not len(disarmed):
            break
        tried = to_grid(images[disarmed], (given + candidate)[disarmed], eps)
        aims = None if targets is None else targets[disarmed]
        works = reached(predicted(classifier, tried.float() / 255.0), labels[disarmed], aims)
        grid[disarmed[works]] = tried[works]
        fooled[disarmed[works]] = True
    return grid, fooled
