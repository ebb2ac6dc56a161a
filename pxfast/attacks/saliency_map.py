"""The Jacobian-based saliency map attack (JSMA; Papernot et al. 2016, algorithms 2 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_number, check_optional_count
from ..tensors.floating import widened
from .attack import Attack
from .gradients import eager, input_gradient

MOST_PAIRS = 2**22  # that are compared at once


def jacobian(classifier: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, classes), and two gradients of x's shape: of the target's logit, and of the sum of all others."""
    with torch.enable_grad(), eager():
        x = x.detach().requires_grad_()
        logits = classifier(x)
        towards = input_gradient(logits.gather(1, targets[:, None]).sum(), x, keep=True)
        others = input_gradient(logits.sum(), x) - towards
    return logits.detach(), towards, others


def salient_pairs(towards: Tensor, others: Tensor, free: Tensor, *, increase: bool) -> tuple[Tensor, Tensor]:
    """For each image the two values whose joint change helps the target most and the other classes least.

    towards, others: the gradients, (N, D). free: bool (N, D), the values that may still change. Among the pairs whose
    gradients sum to alpha > 0 (towards) and beta < 0 (others), or the reverse when values are decreased, the one with
    the largest \\|alpha beta\\|. Returns its positions, int64 (N, 2), and bool (N,): whether there is such a pair.
    """
    N = len(free)
    sign = 1.0 if increase else -1.0
    # half precision has no room for products of gradients
    gains, losses = sign * widened(towards), -sign * widened(others)
    rivals = _contenders(gains, losses, free)
    most = int(rivals.sum(1).max()) if N else 0
    pairs = torch.zeros((N, 2), dtype=torch.int64, device=free.device)
    found = torch.zeros(N, dtype=torch.bool, device=free.device)
    if most < 2:
        return pairs, found
    order = (~rivals).sort(dim=1, stable=True).indices[:, :most]  # the contenders first, by position
    for i in range(0, N, step := max(1, MOST_PAIRS // most**2)):
        at = order[i : i + step]
        chosen = rivals[i : i + step].gather(1, at)
        alpha, beta = gains[i : i + step].gather(1, at), losses[i : i + step].gather(1, at)
        alpha, beta = alpha[:, :, None] + alpha[:, None], beta[:, :, None] + beta[:, None]
        valid = (alpha > 0.0) & (beta > 0.0) & chosen[:, :, None] & chosen[:, None]
        score = torch.where(valid, alpha * beta, 0.0)
        score.diagonal(dim1=1, dim2=2).zero_()
        best, index = score.flatten(1).max(1)
        pairs[i : i + step] = at.gather(1, torch.stack((index // most, index % most), dim=1))
        found[i : i + step] = best > 0.0
    return pairs, found


def _contenders(gains: Tensor, losses: Tensor, free: Tensor) -> Tensor:
    """Bool (N, D): the free values that are in the best pair, and few others.

    A value that two others match or surpass in both numbers is in no better pair than one of those two in its place.
    So D^2 pairs (9 million of a CIFAR-10 image) shrink to those of some tens of values.
    """
    lowest = torch.finfo(gains.dtype).min
    gains, losses = gains.where(free, lowest), losses.where(free, lowest)
    order = gains.sort(dim=1, descending=True, stable=True).indices
    sorted_losses = losses.gather(1, order)
    largest = sorted_losses.cummax(1).values
    second = torch.full_like(sorted_losses, -torch.inf)  # the second largest of those before
    second[:, 2:] = torch.minimum(sorted_losses[:, 1:], largest[:, :-1]).cummax(1).values[:, :-1]
    return torch.zeros_like(free).scatter(1, order, sorted_losses > second) & free


def runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    """The likeliest class that is not the label, (N,) int64."""
    return logits.scatter(1, labels[:, None], -torch.inf).argmax(1)


class SaliencyMap(Attack):
    """The Jacobian-based saliency map attack (JSMA) on the logits, towards the likeliest wrong class: pairs of values
    are changed, those first that help it most, until the image is misclassified. It is not bounded by eps.

    theta: by how much a value of the pair changes, in [-1, 1] but not 0, in units of the range [0, 1]: 1 turns it
    white, -1 black. max_steps: the most pairs there may be, at least 0; None: as many as there are values. TypeError
    or ValueError for others.

    Source: Papernot et al. 2016, algorithms 2 and 3.
    """

    name = "saliency-map"
    source = (
        "Papernot et al. 2016, on the logits, towards the likeliest wrong class until misclassified: pairs of "
        "values go to white (theta=1; theta=-1: to black)"
    )
    bounded = False
    targeted = True

    def __init__(self, *, theta: float = 1.0, max_steps: int | None = None) -> None:
        self.theta: float = check_number("theta", theta, -1.0, 1.0)
        if self.theta == 0.0:
            raise ValueError("theta must not be 0, which changes nothing")
        self.max_steps: int | None = check_optional_count("max_steps", max_steps)

    def perturb(
        self,
        classifier: nn.Module,
        x: Tensor,
        labels: Tensor,
        eps: float = 1.0,
        *,
        seed: int = 0,
        targets: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`Attack.perturb`. targets: integers (N,), the classes to reach, instead of any wrong one."""
        moved = x.clone(memory_format=torch.contiguous_format)
        D = x[0].numel()
        with torch.no_grad():
            aims = runner_up(classifier(x), labels) if targets is None else targets
        active = torch.arange(len(x), device=x.device)
        for _ in range(D if self.max_steps is None else self.max_steps):
            logits, towards, others = jacobian(classifier, moved[active], aims[active])
            given = logits.argmax(1)
            done = given != labels[active] if targets is None else given == aims[active]
            values = moved[active].flatten(1)
            free = values < 1.0 if self.theta > 0.0 else values > 0.0
            pairs, found = salient_pairs(towards.flatten(1), others.flatten(1), free, increase=self.theta > 0.0)
            going = found & ~done
            active, values, pairs = active[going], values[going], pairs[going]
            if not len(active):
                break
            values.scatter_(1, pairs, (values.gather(1, pairs) + self.theta).clamp(0.0, 1.0))
            moved[active] = values.view_as(moved[active])
        return moved
