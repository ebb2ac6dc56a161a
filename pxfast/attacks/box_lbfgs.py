"""The box-constrained L-BFGS attack (Szegedy et al. 2014, section 4.1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_count, check_number
from ..base.extras import require
from ..base.together import answered_together
from ..tensors.floating import widened
from .attack import Attack
from .carlini_wagner import MOST_CONST, weighted_gradient
from .gradients import differentiable
from .saliency_map import runner_up


class Question(NamedTuple):
    """What a search asks for: the loss at an image, its gradient, and the class that it is given.

    values: the image, float64 (D,). number: of the image that is attacked. const: of the cross-entropy in the loss.
    """

    values: np.ndarray
    number: int
    const: float


class Answer(NamedTuple):
    """The answer to a :class:`Question`; gradient: float64 (D,)."""

    loss: float
    gradient: np.ndarray
    given: int


class Search:
    """The search for one image: the nearest misclassified image seen so far, and the minimisations that look for it.

    x: the image, float64 (D,) in [0, 1]. number: its number. label: its class. target: the class to lead to. exact:
    only the target counts, or else every class but the label. ask: answers a question.
    """

    def __init__(
        self, ask: Callable[[Question], Answer], x: np.ndarray, number: int, label: int, target: int, *, exact: bool
    ) -> None:
        self.ask = ask
        self.x = x
        self.number = number
        self.label = label
        self.target = target
        self.exact = exact
        self.nearest: np.ndarray = x
        self.distance: float = math.inf

    def works(self, values: np.ndarray, given: int) -> bool:
        """Whether an image is what is looked for; remembers it if it is the nearest such."""
        found = given == self.target if self.exact else given != self.label
        distance = float(np.square(values - self.x).sum())
        if found and distance < self.distance:
            self.nearest, self.distance = values.copy(), distance
        return found

    def minimise(self, const: float, iterations: int) -> bool:
        """Minimise |r|^2 + const * cross-entropy of the target, r the distance from x; whether the result works."""
        optimize = require("scipy.optimize", "attacks")

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            answer = self.ask(Question(values, self.number, const))
            self.works(values, answer.given)
            return answer.loss, answer.gradient

        found = optimize.minimize(
            objective,
            self.x,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * self.x.size,
            options={"maxiter": iterations},
        )
        return self.works(found.x, self.ask(Question(found.x, self.number, const)).given)

    def nearest_by(self, first_const: float, doublings: int, bisections: int, iterations: int) -> np.ndarray:
        """The nearest image that works, float64 (D,), or x: the options are those of :class:`LBFGS`."""
        if self.works(self.x, self.ask(Question(self.x, self.number, 0.0)).given):
            return self.nearest
        low, high = 0.0, first_const
        for _ in range(doublings):
            if self.minimise(high, iterations):
                break
            low, high = high, min(2.0 * high, max(MOST_CONST, first_const))
        for _ in range(bisections if self.distance < math.inf else 0):
            middle = (low + high) / 2.0
            if self.minimise(middle, iterations):
                high = middle
            else:
                low = middle
        return self.nearest


def answers(classifier: nn.Module, x: Tensor, targets: Tensor, questions: list[Question]) -> list[Answer]:
    """The answers to questions about images x, floating (N, C, H, W). targets: int64 (N,)."""
    numbers = torch.tensor([question.number for question in questions], device=x.device)
    consts = torch.tensor([question.const for question in questions]).to(x)
    with torch.enable_grad():
        values = torch.from_numpy(np.stack([question.values for question in questions]))
        moved = values.to(x).view(-1, *x.shape[1:]).requires_grad_()
        logits = differentiable(classifier(moved))
        losses = (moved - x[numbers]).square().flatten(1).sum(1)
        # L-BFGS-B looks for the least loss along a line, in which half precision has few steps
        losses = losses + consts * F.cross_entropy(widened(logits), targets[numbers], reduction="none").to(consts)
        gradients = weighted_gradient(losses, consts, moved).flatten(1).double().cpu().numpy()
    return [Answer(*found) for found in zip(losses.tolist(), gradients, logits.argmax(1).tolist(), strict=True)]


class LBFGS(Attack):
    """The box-constrained L-BFGS attack: the squared distance plus a constant times the cross-entropy of the likeliest
    wrong class is minimised by L-BFGS-B. The constant is doubled until the result is misclassified, then bisected
    towards the smallest one that does; the nearest misclassified image seen on the way. It is not bounded by eps.

    first_const: the first constant, above 0. doublings: the most there may be, at least 0. bisections: how many, at
    least 0. iterations: of L-BFGS-B for each constant, at least 1. TypeError or ValueError for others. Needs SciPy
    (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Szegedy et al. 2014, section 4.1.
    """

    name = "lbfgs"
    library: ClassVar[str | None] = "scipy.optimize"
    source = (
        "Szegedy et al. 2014: L-BFGS-B on distance and cross-entropy of the likeliest wrong class, with the "
        "smallest constant that misclassifies, found by doubling and bisection; the nearest image seen on the way"
    )
    bounded = False
    targeted = True
    batch = 16  # each has a thread of its own
    block = 8 * batch

    def __init__(
        self, *, first_const: float = 1e-2, doublings: int = 20, bisections: int = 5, iterations: int = 50
    ) -> None:
        self.first_const: float = check_number("first_const", first_const, 0.0, ends="()")
        self.doublings: int = check_count("doublings", doublings)
        self.bisections: int = check_count("bisections", bisections)
        self.iterations: int = check_count("iterations", iterations, 1)

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
        with torch.no_grad():
            aims = runner_up(classifier(x), labels) if targets is None else targets
        images = x.double().flatten(1).cpu().numpy()

        def task(ask: Callable[[Question], Answer], i: int) -> np.ndarray:
            search = Search(ask, images[i], i, int(labels[i]), int(aims[i]), exact=targets is not None)
            return search.nearest_by(self.first_const, self.doublings, self.bisections, self.iterations)

        nearest = answered_together(
            [functools.partial(task, i=i) for i in range(len(x))],
            lambda questions: answers(classifier, x, aims, questions),
            self.batch,
        )
        return torch.from_numpy(np.stack(nearest)).to(x).view_as(x) if nearest else x.clone()
