"""Gradients with respect to images, and the error where there are none; predictions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NO_GRADIENT = (
    "the classifier gives no gradient with respect to its images (a purifier in front of it gives one only with a "
    "backward pass of its own); use an attack that needs none, or attack the classifier behind it"
)


class NoGradient(ValueError):
    """The classifier gives no gradient with respect to its images, which the attack needs."""


def input_gradient(objective: Tensor, x: Tensor, *, keep: bool = False) -> Tensor:
    """The gradient of a scalar with respect to the images that it was computed from. keep: the graph is needed again.

    Raises NoGradient when there is none, ValueError when it is not finite, which would end an attack without a word.
    """
    if objective.requires_grad:
        (gradient,) = torch.autograd.grad(objective, x, retain_graph=keep, allow_unused=True)
        if gradient is not None:
            if not torch.isfinite(gradient).all():
                wrong = int((~torch.isfinite(gradient.flatten(1))).any(dim=1).sum())
                raise ValueError(
                    f"expected finite gradients from the classifier, got NaN or infinity for {wrong} of {len(x)} images"
                )
            return gradient
    raise NoGradient(NO_GRADIENT)


def differentiable(logits: Tensor) -> Tensor:
    """The logits themselves; NoGradient where they have none, which other terms of a loss would hide."""
    if not logits.requires_grad:
        raise NoGradient(NO_GRADIENT)
    return logits


def loss_gradient(classifier: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the cross-entropy, summed over the batch so that no image's depends on the batch's size.

    x: floating (N, C, H, W). labels: int64 (N,). Returns a tensor of x's shape.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return input_gradient(F.cross_entropy(classifier(x), labels, reduction="sum"), x)


@torch.no_grad()
def predicted(classifier: nn.Module, x: Tensor) -> Tensor:
    """The classifier's labels (N,) int64 of floating images (N, C, H, W)."""
    labels: Tensor = classifier(x).argmax(1)
    return labels
