"""The Jacobian-based saliency map attack (JSMA; Papernot et al. 2016, algorithms 2 and 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_number, check_optional_count
from .attack import Attack
from .gradients import eager, input_gradient


def jacobian(classifier: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, classes), and two gradients of x's shape: of the target's logit, and of the sum of all others."""
    with torch.enable_grad(), eager():
        x = x.detach().requires_grad_()
        logits = classifier(x)
        towards = input_gradient(logits.gather(1, targets[:, None]).sum(), x, keep=True)
        others = input_gradient(logits.sum(), x) - towards
    return logits.detach(), towards, others


def salient_pair(towards: Tensor, others: Tensor, free: Tensor, *, increase: bool) -> tuple[int, int] | None:
    """The two values whose joint change helps the target most and the other classes least.

    towards, others: the gradients of one image, (D,). free: bool (D,), the values that may still change. Among the
    pairs whose gradients sum to alpha > 0 (towards) and beta < 0 (others), or the reverse when values are decreased,
    the one with the largest \\|alpha beta\\|; None when there is no such pair.
    """
    positions = free.nonzero()[:, 0]
    if len(positions) < 2:
        return None
    sign = 1.0 if increase else -1.0
    alpha, beta = sign * towards[positions], sign * others[positions]
    alpha, beta = alpha[:, None] + alpha, beta[:, None] + beta
    score = torch.where((alpha > 0.0) & (beta < 0.0), -alpha * beta, 0.0).fill_diagonal_(0.0)
    best = int(score.argmax())
    if float(score.flatten()[best]) <= 0.0:
        return None
    return int(positions[best // len(positions)]), int(positions[best % len(positions)])


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
            going = []
            for i, image in enumerate(active.tolist()):
                if done[i]:
                    continue
                values = moved[image].view(D)
                free = values < 1.0 if self.theta > 0.0 else values > 0.0
                pair = salient_pair(towards[i].flatten(), others[i].flatten(), free, increase=self.theta > 0.0)
                if pair is not None:
                    values[list(pair)] = (values[list(pair)] + self.theta).clamp(0.0, 1.0)
                    going.append(image)
            if not going:
                break
            active = torch.tensor(going, device=x.device)
        return moved
