"""Gradients with respect to images, and the error where there are none; predictions."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tensors.floating import widened

SHORTEST = 1024  # times the smallest normal number of a type: the least that a gradient of logits keeps its parts in
SURE = 2.0**-12  # of 1 - p: a difference from 1 keeps half of the digits of fp32
NO_GRADIENT = (
    "the classifier gives no gradient with respect to its images (a purifier in front of it gives one only with a "
    "backward pass of its own); use an attack that needs none, or attack the classifier behind it"
)


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """In here compiled modules run as they were written: a compiled graph can be differentiated only once."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters that want no gradient: libraries that go backwards to all leaves would leave theirs behind."""
    wanting = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


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
        return cross_entropy_gradient([classifier(x)], labels, x)


class Slope(NamedTuple):
    """The gradient of a loss with respect to the logits of several views, (V, N, classes), summed over the images.

    lost: bool (N,), where it is nothing or too short for its type, and an attack would stand still. spare: a longer one
    of the same direction there.
    """

    along: Tensor
    lost: Tensor
    spare: Tensor

    def used(self) -> Tensor:
        """The gradient, and the spare one where it is lost."""
        return torch.where(self.lost[:, None], self.spare, self.along)


Loss = Callable[[Tensor, Tensor], Slope]  # of the logits of each view, (V, N, classes), detached, and labels (N,)


def cross_entropy_slope(logits: Tensor, labels: Tensor) -> Slope:
    """That of the cross-entropy of the views' mean probabilities: p_v - onehot, weighted by p_v(label).

    Of an image that is classified surely, p_v(label) - 1 has few digits or none: it is minus the sum of the others.
    The gradient is lost where the others' probabilities are 0 in the logits' type, too. The spare one is then that
    over the largest (1 - p_v(label)) p_v(label) of the views.
    """
    own = F.one_hot(labels, logits.shape[-1]).bool().expand_as(logits)
    likely = logits.log_softmax(dim=-1)
    right = likely.gather(-1, labels.expand(logits.shape[:-1])[..., None])  # (V, N, 1)
    weights = right.softmax(dim=0)
    others = likely.exp().masked_fill(own, 0.0)
    short = own & (right > -SURE)
    along = weights * torch.where(short, -others.sum(dim=-1, keepdim=True), _cross_entropies_slope(logits, labels))
    tiny = torch.finfo(logits.dtype).tiny
    lost = along.abs().amax(dim=(0, 2)) < max(SHORTEST * tiny, math.sqrt(tiny))
    if logits.shape[-1] < 2 or not bool(lost.any()):
        return Slope(along, torch.zeros_like(lost), along)
    wide = widened(logits).masked_fill(own, -torch.inf)
    doubt = wide.logsumexp(dim=-1, keepdim=True) - widened(logits).logsumexp(dim=-1, keepdim=True)
    shares = doubt + widened(right)
    shares = (shares - shares.amax(dim=0)).exp()
    spare = shares * torch.where(own, -1.0, wide.softmax(dim=-1))
    return Slope(along, lost, spare.to(along))


def _cross_entropies_slope(logits: Tensor, labels: Tensor) -> Tensor:
    """p_v - onehot, by torch's own cross-entropy of each view."""
    with torch.enable_grad():
        given = logits.detach().flatten(0, 1).requires_grad_()
        loss = F.cross_entropy(given, labels.repeat(len(logits)), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, given)
    return gradient.view_as(logits)


def cross_entropy_gradient(logits: Sequence[Tensor], labels: Tensor, x: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy of views' mean probabilities with respect to the images x, (N, C, H, W).

    logits: of each view, (N, classes). Where it is lost it is a longer one of the same direction
    (:func:`cross_entropy_slope`).
    """
    mean = MeanGradient(cross_entropy_slope)
    mean.add(logits, labels, x, 1)
    return mean.mean()


class MeanGradient:
    """The mean gradient of a loss over several runs of a purifier. loss: :func:`cross_entropy_slope`, or another.

    Runs in which an image's gradient is lost count for nothing beside others; where all are lost, the spare ones count.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss: Loss = loss
        self._along: list[Tensor] = []
        self._lost: list[Tensor] = []
        self._spare: list[Tensor] = []

    def add(self, logits: Sequence[Tensor], labels: Tensor, x: Tensor, runs: int) -> None:
        """Take in so many runs. logits: of each view (runs * N, classes), run by run. labels: (runs * N,). x: what the
        logits come from, the images of one run after those of the other.
        """
        every = torch.stack([differentiable(view) for view in logits])
        slope = self.loss(every.detach(), labels)
        again = bool(slope.lost.any())
        along = input_gradient(every, x, weights=slope.along, keep=again)
        self._along += along.chunk(runs)
        self._lost += slope.lost.chunk(runs)
        self._spare += (input_gradient(every, x, weights=slope.used()) if again else along).chunk(runs)

    def mean(self) -> Tensor:
        """The mean over all runs, of the shape of a run's part of x; several views of an image are rows of it."""
        along = mean(self._along)
        lost = torch.stack(self._lost).all(dim=0)
        if not bool(lost.any()):
            return along
        lost = lost.repeat(len(along) // len(lost))
        return torch.where(lost[:, None, None, None], mean(self._spare), along)


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(dim=0)


@torch.no_grad()
def predicted(classifier: nn.Module, x: Tensor) -> Tensor:
    """The classifier's labels (N,) int64 of floating images (N, C, H, W)."""
    labels: Tensor = classifier(x).argmax(1)
    return labels
