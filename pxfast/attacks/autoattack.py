"""AutoAttack (Croce and Hein 2020) through pyautoattack: APGD-CE, targeted APGD, targeted FAB and Square."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.extras import require
from .attack import Attack
from .gradients import input_gradient


def _autoattack(
    classifier: nn.Module, x: Tensor, labels: Tensor, eps: float, *, seed: int, version: str = "standard"
) -> Tensor:
    library = require("pyautoattack", "attacks")
    with torch.enable_grad():
        probe = x[:1].detach().requires_grad_()
        logits = classifier(probe)
        input_gradient(logits.sum(), probe)  # or its own error, which is clearer than AutoAttack's
    if eps == 0.0:  # AutoAttack divides by it
        return x
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        evaluation = library.AutoAttack(classifier, norm="Linf", eps=eps, version=version, seed=seed, device=x.device)
        others = logits.shape[1] - 1
        for targeted in (evaluation.apgd_targeted, evaluation.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, others)
        moved, _ = evaluation.run_standard_evaluation(x, labels, batch_size=len(x))
    return x + (moved - x).clamp(-eps, eps)


autoattack = Attack(
    "autoattack",
    _autoattack,
    bounded=True,
    needs_gradient=True,
    source="Croce and Hein 2020, standard version, by pyautoattack; random numbers are drawn for 128 images as a whole",
    joint=True,
)
