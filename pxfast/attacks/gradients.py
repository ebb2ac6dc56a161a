"""Gradients with respect to images, and the error where there are none; predictions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tensors.floating import widened

SHORTEST = 1024  # times the smallest normal number of a type: the least that a gradient of logits keeps its parts in
NO_GRADIENT = (
    "the classifier gives no gradient with respect to its images (a purifier in front of it gives one only with a "
    "backward pass of its own); use an attack that needs none, or attack the classifier behind it"
)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """In here compiled modules run as they were written: a compiled graph can be differentiated only once."""
    with torch.compiler.set_stance("force_eager"):
        yield


class NoGradient(ValueError):
    """The classifier gives no gradient with respect to its images, which the attack needs."""


def input_gradient(objective: Tensor, x: Tensor, *, keep: bool = False, weights: Tensor | None = None) -> Tensor:
    """The gradient of a scalar with respect to the images that it was computed from. keep: the graph is needed again.

    weights: of the objective's values, where it is no scalar: the gradient is that of their weighted sum.
    Raises NoGradient when there is none, ValueError when it is not finite, which would end an attack without a word.
    """
    if objective.requires_grad:
        (gradient,) = torch.autograd.grad(objective, x, weights, retain_graph=keep, allow_unused=True)
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

    x: floating (N, C, H, W). labels: int64 (N,). Returns a tensor of x's shape. Its length is not the cross-entropy's
    where that would be lost: see :func:`cross_entropy_gradient`.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return cross_entropy_gradient(classifier(x), labels, x)


def cross_entropy_gradient(logits: Tensor, labels: Tensor, x: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy of logits (N, classes) with respect to the images x, (N, C, H, W).

    Where an image is classified so surely that its probabilities are 0 and 1 in the logits' type, that gradient is
    nothing or too short for the type, and an attack would stand still. The image gets the gradient of log of the sum
    over the other classes, minus its own logit: that of the cross-entropy over 1 - p, of the same direction.
    """
    upper = _logits_gradient(lambda given: F.cross_entropy(given, labels, reduction="sum"), differentiable(logits))
    tiny = torch.finfo(logits.dtype).tiny
    lost = upper.abs().amax(1) < max(SHORTEST * tiny, math.sqrt(tiny))
    if logits.shape[1] > 1 and bool(lost.any()):
        own = F.one_hot(labels, logits.shape[1]).bool()

        def odds(given: Tensor) -> Tensor:
            wide = widened(given)
            return (wide.masked_fill(own, -torch.inf).logsumexp(dim=1) - wide[own]).sum()

        upper = torch.where(lost[:, None], _logits_gradient(odds, logits), upper)
    return input_gradient(logits, x, weights=upper)


def _logits_gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The gradient of a loss with respect to the logits alone."""
    given = logits.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(given), given)
    return gradient


@torch.no_grad()
def predicted(classifier: nn.Module, x: Tensor) -> Tensor:
    """The classifier's labels (N,) int64 of floating images (N, C, H, W)."""
    labels: Tensor = classifier(x).argmax(1)
    return labels
