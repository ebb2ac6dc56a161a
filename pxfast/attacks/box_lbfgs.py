"""The box-constrained L-BFGS attack (Szegedy et al. 2014, section 4.1)."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_count, check_number
from ..base.extras import require
from .attack import Attack
from .gradients import differentiable, input_gradient
from .saliency_map import runner_up


class Search:
    """The search for one image: the nearest misclassified image seen so far, and the minimisations that look for it.

    x: (1, C, H, W) floating in [0, 1]. label: int64 (1,). target: int64 (1,), the class to lead to. exact: only the
    target counts, or else every class but the label.
    """

    def __init__(self, classifier: nn.Module, x: Tensor, label: Tensor, target: Tensor, *, exact: bool) -> None:
        self.classifier = classifier
        self.x = x
        self.label = label
        self.target = target
        self.exact = exact
        self.nearest: Tensor = x
        self.distance: float = math.inf

    def works(self, moved: Tensor, logits: Tensor) -> bool:
        """Whether an image is what is looked for; remembers it if it is the nearest such."""
        given = logits.detach().argmax(1)
        found = bool(given == self.target) if self.exact else bool(given != self.label)
        distance = float((moved.detach() - self.x).square().sum())
        if found and distance < self.distance:
            self.nearest, self.distance = moved.detach().clone(), distance
        return found

    def minimise(self, const: float, iterations: int) -> bool:
        """Minimise |r|^2 + const * cross-entropy of the target, r the distance from x; whether the result works."""
        optimize = require("scipy.optimize", "attacks")

        def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
            with torch.enable_grad():
                moved = torch.from_numpy(values).to(self.x).view_as(self.x).requires_grad_()
                logits = differentiable(self.classifier(moved))
                loss = (moved - self.x).square().sum() + const * F.cross_entropy(logits, self.target)
                gradient = input_gradient(loss, moved)
            self.works(moved, logits)
            return float(loss), gradient.double().cpu().numpy().ravel()

        found = optimize.minimize(
            objective,
            self.x.double().cpu().numpy().ravel(),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0.0, 1.0)] * self.x.numel(),
            options={"maxiter": iterations},
        )
        moved = torch.from_numpy(np.clip(found.x, 0.0, 1.0)).to(self.x).view_as(self.x)
        return self.works(moved, self.classifier(moved))


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
    batch = 1  # the optimiser takes one image at a time

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
        results = []
        with torch.no_grad():
            for i in range(len(x)):
                image, label = x[i : i + 1], labels[i : i + 1]
                logits = classifier(image)
                target = runner_up(logits, label) if targets is None else targets[i : i + 1]
                search = Search(classifier, image, label, target, exact=targets is not None)
                if not search.works(image, logits):
                    low, high = 0.0, self.first_const
                    for _ in range(self.doublings):
                        if search.minimise(high, self.iterations):
                            break
                        low, high = high, 2.0 * high
                    for _ in range(self.bisections if search.distance < math.inf else 0):
                        middle = (low + high) / 2.0
                        if search.minimise(middle, self.iterations):
                            high = middle
                        else:
                            low = middle
                results.append(search.nearest)
        return torch.cat(results)
