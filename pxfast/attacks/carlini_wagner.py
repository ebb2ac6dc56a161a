"""Carlini and Wagner's attacks (2017) in L2 and L-infinity, clipped to the ball.

PixelDefend's text speaks of the L2 attack; the tables come from code that runs the L-infinity one, which is
``cw_linf`` with its defaults here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attack import Attack
from .gradients import differentiable, input_gradient

INSIDE = 0.999999  # keeps black and white away from the infinite ends of tanh


class Adam:
    """Adam (Kingma and Ba 2015) whose images count their steps apart, so that each can be restarted alone."""

    def __init__(self, x: Tensor, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.mean, self.square = torch.zeros_like(x), torch.zeros_like(x)
        self.count = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)

    def restart(self, chosen: Tensor) -> None:
        for state in (self.mean, self.square, self.count):
            state[chosen] = 0.0

    def step(self, chosen: Tensor, gradient: Tensor) -> Tensor:
        """What to add to the chosen images, given their gradients."""
        self.count[chosen] += 1.0
        self.mean[chosen] = 0.9 * self.mean[chosen] + 0.1 * gradient
        self.square[chosen] = 0.999 * self.square[chosen] + 0.001 * gradient**2
        mean = self.mean[chosen] / (1.0 - 0.9 ** self.count[chosen])
        square = self.square[chosen] / (1.0 - 0.999 ** self.count[chosen])
        return -self.learning_rate * mean / (square.sqrt() + 1e-8)


def to_tanh(x: Tensor) -> Tensor:
    """Values in [0, 1] to the unbounded space in which the attacks search."""
    return ((2.0 * x - 1.0) * INSIDE).atanh()


def from_tanh(w: Tensor) -> Tensor:
    """The inverse of ``to_tanh``."""
    return (w.tanh() + 1.0) / 2.0


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's logit minus the best other one, (N,): negative where the image is misclassified."""
    own = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own - others.amax(1)


def _cw_l2(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float | None,
    *,
    steps: int = 200,
    binary_search_steps: int = 9,
    learning_rate: float = 1e-2,
    initial_const: float = 1e-3,
    confidence: float = 0.0,
) -> Tensor:
    origin = to_tanh(x)
    centre = from_tanh(origin)
    const = torch.full((len(x),), initial_const, dtype=x.dtype, device=x.device)
    low, high = torch.zeros_like(const), torch.full_like(const, torch.inf)
    best, best_distance = x.clone(), torch.full_like(const, torch.inf)
    patience = max(10, steps // 10)  # as Carlini has it, but no sooner: the first steps of Adam may lead uphill
    for _ in range(binary_search_steps):
        w, optimiser = origin.clone(), Adam(x, learning_rate)
        succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        earlier = torch.full_like(const, torch.inf)
        active = torch.arange(len(x), device=x.device)
        for step in range(steps):
            with torch.enable_grad():
                searched = w[active].requires_grad_()
                moved = from_tanh(searched)
                distance = (moved - centre[active]).square().sum((1, 2, 3))
                room = margin(differentiable(classifier(moved)), labels[active])
                loss = distance + const[active] * (room + confidence).clamp_min(0.0)
                gradient = input_gradient(loss.sum(), searched)
            moved, distance, room, loss = moved.detach(), distance.detach(), room.detach(), loss.detach()
            # ties go to the first class, which may be the label
            works = (room < 0.0) & (room <= -confidence)
            succeeded[active] |= works
            better = works & (distance < best_distance[active])
            best[active[better]], best_distance[active[better]] = moved[better], distance[better]
            w[active] += optimiser.step(active, gradient)
            if step % patience == 0:  # an image whose loss has stopped falling is done
                falling = loss <= 0.9999 * earlier[active]
                earlier[active] = loss
                active = active[falling]
                if not len(active):
                    break
        high = torch.where(succeeded, torch.minimum(high, const), high)
        low = torch.where(succeeded, low, torch.maximum(low, const))
        const = torch.where(high.isinf(), 10.0 * const, (low + high) / 2.0)
    return best


def _cw_linf(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float | None,
    *,
    steps: int = 100,
    learning_rate: float = 5e-3,
    const: float = 1e-5,
    shrinkage: float = 0.9,
    smallest: float = 1.0 / 256.0,
) -> Tensor:
    centre = from_tanh(to_tanh(x))
    best, w, optimiser = x.clone(), to_tanh(x), Adam(x, learning_rate)
    tau = torch.ones(len(x), dtype=x.dtype, device=x.device)
    taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # steps since tau was lowered
    active = torch.arange(len(x), device=x.device)
    while len(active):
        with torch.enable_grad():
            searched = w[active].requires_grad_()
            moved = from_tanh(searched)
            change = (moved - centre[active]).abs()
            excess = (change - tau[active][:, None, None, None]).clamp_min(0.0).sum((1, 2, 3))
            room = margin(differentiable(classifier(moved)), labels[active])
            loss = const * room.clamp_min(0.0) + excess
            gradient = input_gradient(loss.sum(), searched)
        works = (loss.detach() < 1e-4 * const) & (room.detach() < 0.0)
        found = active[works]
        best[found] = moved.detach()[works]
        largest = change.detach()[works].amax((1, 2, 3))
        tau[found] = shrinkage * torch.minimum(tau[found], largest)
        w[active] += optimiser.step(active, gradient)
        w[found] = to_tanh(best[found])  # the next, smaller tau starts from here
        optimiser.restart(found)
        taken[active] += 1
        taken[found] = 0
        active = active[(tau[active] > smallest) & (taken[active] < steps)]
    return best


cw_l2 = Attack(
    "cw-l2",
    _cw_l2,
    bounded=True,
    needs_gradient=True,
    source="Carlini and Wagner 2017, L2, untargeted, binary search over 9 constants, then clipped to ±eps",
    clipped=True,
)

cw_linf = Attack(
    "cw-linf",
    _cw_linf,
    bounded=True,
    needs_gradient=True,
    source="Carlini and Wagner 2017, L-infinity, untargeted, with the settings of PixelDefend's authors, whose tables "
    "it made: constant 1e-5, 100 steps of Adam 5e-3 per tau, tau falling by 0.9 to 1/256; then clipped to ±eps",
    clipped=True,
)
