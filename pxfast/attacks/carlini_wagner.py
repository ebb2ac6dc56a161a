"""Carlini and Wagner's attacks (2017) in L2 and L-infinity, clipped to the ball.

PixelDefend's text speaks of the L2 attack; the tables come from code that runs the L-infinity one, which is
``CWLinf`` with its defaults here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_count, check_number
from .clipped import ClippedAttack
from .gradients import differentiable, input_gradient

INSIDE = 0.999999  # keeps black and white away from the infinite ends of tanh
MOST_CONST = 1e10  # that a search raises a constant to, as Carlini has it: fp32 has room for it times a loss


class Adam:
    """Adam (Kingma and Ba 2015) whose images count their steps apart, so that each can be restarted alone."""

    def __init__(self, x: Tensor, learning_rate: float) -> None:
        self.learning_rate = learning_rate
        self.mean: Tensor = torch.zeros_like(x)
        self.square: Tensor = torch.zeros_like(x)
        self.count: Tensor = torch.zeros(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)

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


def weighted_gradient(losses: Tensor, const: Tensor, searched: Tensor) -> Tensor:
    """The gradient of losses (N,), in which the logits count ``const`` (N,) times, with respect to ``searched``.

    What goes back through the classifier is of about unit size: fp16 has no room for 1e-5 or 1e5. It is scaled by
    powers of two, which change no bit in fp32.
    """
    power = torch.where(const > 0.0, torch.frexp(const).mantissa / const, 1.0)
    return input_gradient(losses, searched, weights=power) / power[:, None, None, None]


class CWL2(ClippedAttack):
    """Carlini and Wagner's L2 attack, untargeted: Adam on the squared distance plus a constant times the lead of the
    label's logit, the constant found by binary search; the nearest misclassified image, then clipped to ±eps.

    steps: of Adam for each constant, at least 0. binary_search_steps: how many constants, at least 1. learning_rate:
    Adam's, above 0. initial_const: the first constant, above 0. confidence: by how much another logit has to lead, at
    least 0. TypeError or ValueError for others.

    Source: Carlini and Wagner 2017, section VI.A.
    """

    name = "cw-l2"
    source = "Carlini and Wagner 2017, L2, untargeted, binary search over 9 constants, then clipped to ±eps"

    def __init__(
        self,
        *,
        steps: int = 200,
        binary_search_steps: int = 9,
        learning_rate: float = 1e-2,
        initial_const: float = 1e-3,
        confidence: float = 0.0,
    ) -> None:
        self.steps: int = check_count("steps", steps)
        self.binary_search_steps: int = check_count("binary_search_steps", binary_search_steps, 1)
        self.learning_rate: float = check_number("learning_rate", learning_rate, 0.0, ends="()")
        self.initial_const: float = check_number("initial_const", initial_const, 0.0, ends="()")
        self.confidence: float = check_number("confidence", confidence, 0.0)

    def find(self, classifier: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        origin = to_tanh(x)
        centre = from_tanh(origin)
        const = torch.full((len(x),), self.initial_const, dtype=x.dtype, device=x.device)
        low, high = torch.zeros_like(const), torch.full_like(const, torch.inf)
        best, best_distance = x.clone(), torch.full_like(const, torch.inf)
        patience = max(
            10, self.steps // 10
        )  # as Carlini has it, but no sooner: the first steps of Adam may lead uphill
        for _ in range(self.binary_search_steps):
            w, optimiser = origin.clone(), Adam(x, self.learning_rate)
            succeeded = torch.zeros(len(x), dtype=torch.bool, device=x.device)
            earlier = torch.full_like(const, torch.inf)
            active = torch.arange(len(x), device=x.device)
            for step in range(self.steps):
                with torch.enable_grad():
                    searched = w[active].requires_grad_()
                    moved = from_tanh(searched)
                    distance = (moved - centre[active]).square().sum((1, 2, 3))
                    room = margin(differentiable(classifier(moved)), labels[active]).to(x.dtype)
                    loss = distance + const[active] * (room + self.confidence).clamp_min(0.0)
                    gradient = weighted_gradient(loss, const[active], searched)
                moved, distance, room, loss = moved.detach(), distance.detach(), room.detach(), loss.detach()
                # ties go to the first class, which may be the label
                works = (room < 0.0) & (room <= -self.confidence)
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
            raised = (10.0 * const).clamp_max(max(MOST_CONST, self.initial_const))
            const = torch.where(high.isinf(), raised, (low + high) / 2.0)
        return best


class CWLinf(ClippedAttack):
    """Carlini and Wagner's L-infinity attack, untargeted: Adam on the excess of the change over tau, a bound that falls
    as long as misclassified images are found within it; the last of them, then clipped to ±eps.

    The defaults are those of PixelDefend's authors, whose tables this attack made.

    steps: of Adam for each tau, at least 1. learning_rate: Adam's, above 0. const: the weight of the logits' margin in
    the loss, above 0. shrinkage: by which tau falls, between 0 and 1. smallest: the tau at which the search ends,
    above 0 and at most 1, in units of the range [0, 1]. TypeError or ValueError for others.

    Source: Carlini and Wagner 2017, section VI.C; settings as in the code of Song et al. 2018 (PixelDefend).
    """

    name = "cw-linf"
    source = (
        "Carlini and Wagner 2017, L-infinity, untargeted, with the settings of PixelDefend's authors, whose tables "
        "it made: constant 1e-5, 100 steps of Adam 5e-3 per tau, tau falling by 0.9 to 1/256; then clipped to ±eps"
    )

    def __init__(
        self,
        *,
        steps: int = 100,
        learning_rate: float = 5e-3,
        const: float = 1e-5,
        shrinkage: float = 0.9,
        smallest: float = 1.0 / 256.0,
    ) -> None:
        self.steps: int = check_count("steps", steps, 1)
        self.learning_rate: float = check_number("learning_rate", learning_rate, 0.0, ends="()")
        self.const: float = check_number("const", const, 0.0, ends="()")
        self.shrinkage: float = check_number("shrinkage", shrinkage, 0.0, 1.0, ends="()")
        self.smallest: float = check_number("smallest", smallest, 0.0, 1.0, ends="(]")

    def find(self, classifier: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        centre = from_tanh(to_tanh(x))
        best, w, optimiser = x.clone(), to_tanh(x), Adam(x, self.learning_rate)
        tau = torch.ones(len(x), dtype=x.dtype, device=x.device)
        taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)  # steps since tau was lowered
        const = torch.full((len(x),), self.const, dtype=x.dtype, device=x.device)
        active = torch.arange(len(x), device=x.device)
        while len(active):
            with torch.enable_grad():
                searched = w[active].requires_grad_()
                moved = from_tanh(searched)
                change = (moved - centre[active]).abs()
                excess = (change - tau[active][:, None, None, None]).clamp_min(0.0).sum((1, 2, 3))
                room = margin(differentiable(classifier(moved)), labels[active]).to(x.dtype)
                loss = self.const * room.clamp_min(0.0) + excess
                gradient = weighted_gradient(loss, const[active], searched)
            works = (loss.detach() < 1e-4 * self.const) & (room.detach() < 0.0)
            found = active[works]
            best[found] = moved.detach()[works]
            largest = change.detach()[works].amax((1, 2, 3))
            tau[found] = self.shrinkage * torch.minimum(tau[found], largest)
            w[active] += optimiser.step(active, gradient)
            w[found] = to_tanh(best[found])  # the next, smaller tau starts from here
            optimiser.restart(found)
            taken[active] += 1
            taken[found] = 0
            active = active[(tau[active] > self.smallest) & (taken[active] < self.steps)]
        return best
