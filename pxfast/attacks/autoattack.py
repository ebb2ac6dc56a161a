"""AutoAttack (Croce and Hein 2020) through pyautoattack: APGD-CE, targeted APGD, targeted FAB and Square."""

from __future__ import annotations

import contextlib
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..base.checks import check_choice
from ..base.extras import require
from ..defences.defended import Defended
from ..tensors.seeds import derived_seeds
from .attack import Attack
from .gradients import eager, frozen, input_gradient

LEAST_CLASSES = 4
VERSIONS = ("standard", "plus", "rand")


class Redrawn(nn.Module):
    """A defended classifier whose stochastic defences draw other random numbers at every call."""

    def __init__(self, defended: Defended, seed: int) -> None:
        super().__init__()
        self.defended: Defended = defended
        self.seed: int = seed
        self.calls: int = 0
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        (seed,) = derived_seeds([self.seed], self.calls)
        return self.defended.around(self.defended.classifier, seed=seed)(images)


class AutoAttack(Attack):
    """AutoAttack, by pyautoattack. Its random numbers are drawn for a block of images as a whole: an image's result
    may depend on which images are attacked together.

    version: 'standard', 'plus' (with more attacks) or 'rand' (for stochastic defences: gradients are averaged over 20
    draws of a ``Defended``'s noise, where the other versions have one noise all along). TypeError or ValueError for
    another. Needs pyautoattack (``pip install 'pxfast[attacks]'``); ImportError without it. A classifier of fewer than
    four classes is a ValueError.

    Source: Croce and Hein 2020.
    """

    name = "autoattack"
    library: ClassVar[str | None] = "pyautoattack"
    source = (
        "Croce and Hein 2020, standard version, by pyautoattack; random numbers are drawn for 128 images as a whole"
    )
    random = True
    alone = False

    def __init__(self, *, version: str = "standard") -> None:
        self.version: str = check_choice("version", version, VERSIONS)

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        library = require("pyautoattack", "attacks")
        with torch.enable_grad():
            probe = x[:1].detach().requires_grad_()
            logits = classifier(probe)
            input_gradient(logits.sum(), probe)  # or its own error, which is clearer than AutoAttack's
        if logits.shape[1] < LEAST_CLASSES:
            raise ValueError(
                f"AutoAttack's targeted loss takes the {LEAST_CLASSES} likeliest classes, and the classifier has "
                f"{logits.shape[1]}; use another attack, such as PGD"
            )
        if eps == 0.0:  # AutoAttack divides by it
            return x
        attacked = (
            Redrawn(classifier, seed) if self.version == "rand" and isinstance(classifier, Defended) else classifier
        )
        devices = [x.device] if x.device.type == "cuda" else []
        # FAB without targets goes backwards through one graph several times
        mode = eager() if self.version == "plus" else contextlib.nullcontext()
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), frozen(classifier), mode:
            evaluation = library.AutoAttack(
                attacked, norm="Linf", eps=eps, version=self.version, seed=seed, device=x.device
            )
            others = logits.shape[1] - 1
            for targeted in (evaluation.apgd_targeted, evaluation.fab):
                targeted.n_target_classes = min(targeted.n_target_classes, others)
            moved: Tensor = evaluation.run_standard_evaluation(x, labels, batch_size=len(x))[0]
        return x + (moved - x).clamp(-eps, eps)
