"""DeepFool (Moosavi-Dezfooli et al. 2016) in its L-infinity form, clipped to the ball."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_choice, check_count, check_number, check_optional_count
from .clipped import ClippedAttack
from .gradients import eager, input_gradient, predicted
from .sign_steps import LABEL_RULES


def nearest_boundary(classifier: nn.Module, x: Tensor, labels: Tensor, others: Tensor) -> Tensor:
    """The smallest L-infinity step, of x's shape, to a boundary of the linearised classifier.

    x: floating (N, C, H, W). labels: int64 (N,). others: int64 (N, K), the classes whose boundaries are considered.
    """
    with torch.enable_grad(), eager():
        x = x.detach().requires_grad_()
        logits = classifier(x)
        best = torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)
        direction = torch.zeros_like(x)
        for k in range(others.shape[1]):
            lead = (logits.gather(1, others[:, k : k + 1]) - logits.gather(1, labels[:, None]))[:, 0]
            towards = input_gradient(lead.sum(), x, keep=True)
            distance = lead.detach().abs() / (towards.abs().sum((1, 2, 3)) + 1e-8)
            nearer = distance < best
            best = torch.where(nearer, distance, best)
            direction = torch.where(nearer[:, None, None, None], towards.sign(), direction)
    # 1e-4 beyond the boundary, so that steps don't vanish in front of it
    return (best + 1e-4)[:, None, None, None] * direction


class DeepFool(ClippedAttack):
    """DeepFool in its L-infinity form: steps to the nearest boundary of the linearised classifier until the image is
    misclassified, then clipped to ±eps. Values outside 0..255 are clipped at every step.

    steps: the most there may be, at least 0. overshoot: by which fraction the sum of the steps is lengthened, at
    least 0. candidates: how many of the classes that are likeliest at the start are considered, at least 1; None: all.
    label_rule: the label that it leads away from: 'given', so that an image that is misclassified stays, or
    'predicted', as the attack was published. TypeError or ValueError for others.

    Source: Moosavi-Dezfooli et al. 2016, section 3 and, for the L-infinity form, 3.3; settings as in the code of
    Song et al. 2018 (PixelDefend).
    """

    name = "deepfool"
    source = (
        "Moosavi-Dezfooli et al. 2016 in the L-infinity form, overshoot 0.02, at most 50 steps, then clipped to "
        "±eps, as PixelDefend's authors have it; values outside 0..255 are clipped at every step; away from the "
        "given label (label_rule='predicted': from the predicted one, as published)"
    )

    def __init__(
        self,
        *,
        steps: int = 50,
        overshoot: float = 0.02,
        candidates: int | None = None,
        label_rule: str = "given",
    ) -> None:
        self.steps: int = check_count("steps", steps)
        self.overshoot: float = check_number("overshoot", overshoot, 0.0)
        self.candidates: int | None = check_optional_count("candidates", candidates, 1)
        self.label_rule: str = check_choice("label_rule", label_rule, LABEL_RULES)

    def _left(self, classifier: nn.Module, x: Tensor) -> Tensor | None:
        return None if self.label_rule == "given" else predicted(classifier, x)

    def find(self, classifier: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        away = self._left(classifier, x)
        labels = labels if away is None else away
        with torch.no_grad():
            wrong = classifier(x).scatter(1, labels[:, None], -torch.inf)
        most = wrong.shape[1] - 1
        others = wrong.topk(most if self.candidates is None else min(self.candidates, most)).indices
        moved = x.clone()
        total = torch.zeros_like(x)
        active = torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            active = active[predicted(classifier, moved[active]) == labels[active]]
            if not len(active):
                break
            total[active] += nearest_boundary(classifier, moved[active], labels[active], others[active])
            moved[active] = (x[active] + (1.0 + self.overshoot) * total[active]).clamp(0.0, 1.0)
        return moved
