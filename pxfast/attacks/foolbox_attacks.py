"""Eight attacks of the first PixelDefend reproduction, through Foolbox: unclipped, each until misclassified.

The reproduction ran an early Foolbox whose attacks raised their magnitude step by step. Where today's Foolbox takes a
fixed magnitude, the steps are made here: whole levels up to 16, then by an eighth each, up to 255.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.extras import require
from .attack import Attack
from .gradients import NoGradient, predicted
from .sign_steps import uniform


def growing_levels() -> list[float]:
    """Magnitudes in [0, 1]: 1, 2, ..., 16 steps of the grid, then an eighth more each time, up to 255."""
    levels = list(range(1, 17))
    while levels[-1] < 255:
        levels.append(min(255, math.floor(levels[-1] * 1.125)))
    return [level / 255.0 for level in levels]


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Parameters that want no gradient: Foolbox would leave theirs behind."""
    wanting = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


def foolbox_run(attack: Any, classifier: nn.Module, x: Tensor, labels: Tensor, epsilon: float | None = None) -> Tensor:
    """The result of a Foolbox attack on floating images (N, C, H, W) in [0, 1]."""
    foolbox = require("foolbox", "attacks")
    model = foolbox.PyTorchModel(classifier, bounds=(0.0, 1.0), device=x.device)
    try:
        with frozen(classifier), torch.enable_grad():
            moved, _, _ = attack(model, x, foolbox.criteria.Misclassification(labels), epsilons=epsilon)
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise NoGradient(f"the classifier gives no gradient with respect to its images: {error}") from None
        raise
    return moved.detach()


def until_misclassified(
    classifier: nn.Module, x: Tensor, labels: Tensor, attempt: Callable[[Tensor, float], Tensor]
) -> Tensor:
    """The first of the growing attempts that is misclassified, per image; x itself where none is.

    attempt: of the numbers (n,) of the images still to be tried and the magnitude in [0, 1], gives images.
    """
    result = x.clone()
    remaining = (predicted(classifier, x) == labels).nonzero()[:, 0]
    for magnitude in growing_levels():
        if not len(remaining):
            break
        moved = attempt(remaining, magnitude)
        fooled = predicted(classifier, moved) != labels[remaining]
        result[remaining[fooled]] = moved[fooled]
        remaining = remaining[~fooled]
    return result


def _growing(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float | None,
    *,
    foolbox_name: str,
    euclidean: bool = False,
    **options: Any,
) -> Tensor:
    """A Foolbox attack of fixed magnitude; Euclidean ones are measured by the root mean square of the change."""
    attack = getattr(require("foolbox", "attacks").attacks, foolbox_name)(**options)
    scale = math.sqrt(x[0].numel()) if euclidean else 1.0

    def attempt(chosen: Tensor, magnitude: float) -> Tensor:
        return foolbox_run(attack, classifier, x[chosen], labels[chosen], scale * magnitude)

    return until_misclassified(classifier, x, labels, attempt)


def _searching(
    classifier: nn.Module, x: Tensor, labels: Tensor, eps: float | None, *, foolbox_name: str, **options: Any
) -> Tensor:
    """A Foolbox attack that looks for the smallest magnitude itself."""
    attack = getattr(require("foolbox", "attacks").attacks, foolbox_name)(**options)
    return foolbox_run(attack, classifier, x, labels)


def _uniform_noise(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float | None,
    *,
    generators: Sequence[np.random.Generator],
) -> Tensor:
    require("foolbox", "attacks")
    from foolbox.attacks import LinfAdditiveUniformNoiseAttack

    def attempt(chosen: Tensor, magnitude: float) -> Tensor:
        class PerImage(LinfAdditiveUniformNoiseAttack):
            """Foolbox's noise with each image's own random numbers."""

            def sample_noise(self, inputs: Any) -> Any:
                noise = uniform([generators[i] for i in chosen.tolist()], inputs.raw, 1.0)
                return type(inputs)(noise)

        return foolbox_run(PerImage(), classifier, x[chosen], labels[chosen], magnitude)

    return until_misclassified(classifier, x, labels, attempt)


def _salt_and_pepper(
    classifier: nn.Module,
    x: Tensor,
    labels: Tensor,
    eps: float | None,
    *,
    generators: Sequence[np.random.Generator],
    steps: int = 200,
) -> Tensor:
    attack = require("foolbox", "attacks").attacks.SaltAndPepperNoiseAttack(steps=steps, channel_axis=1)
    moved = []
    devices = [x.device] if x.device.type == "cuda" else []
    for i, generator in enumerate(generators):  # Foolbox draws from torch's own generator: one image at a time
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(generator.integers(2**63)))
            moved.append(foolbox_run(attack, classifier, x[i : i + 1], labels[i : i + 1]))
    return torch.cat(moved)


def _unbounded(name: str, perturb: Callable[..., Tensor], source: str, **facts: Any) -> Attack:
    return Attack(
        name, perturb, bounded=False, needs_gradient=facts.pop("needs_gradient", True), source=source, **facts
    )


gradient_sign = _unbounded(
    "gradient-sign",
    functools.partial(_growing, foolbox_name="LinfFastGradientAttack"),
    "Goodfellow et al. 2015 with growing magnitude, by Foolbox",
)
gradient = _unbounded(
    "gradient",
    functools.partial(_growing, foolbox_name="L2FastGradientAttack", euclidean=True),
    "the gradient itself with growing magnitude, by Foolbox",
)
deepfool_l2 = _unbounded(
    "deepfool-l2",
    functools.partial(_searching, foolbox_name="L2DeepFoolAttack"),
    "Moosavi-Dezfooli et al. 2016 in L2, unclipped, by Foolbox",
)
gaussian_blur = _unbounded(
    "gaussian-blur",
    functools.partial(_searching, foolbox_name="GaussianBlurAttack", steps=200, channel_axis=1),
    "growing Gaussian blur, by Foolbox",
    needs_gradient=False,
)
uniform_noise = _unbounded(
    "uniform-noise", _uniform_noise, "growing uniform noise, by Foolbox", needs_gradient=False, random=True
)
salt_and_pepper = _unbounded(
    "salt-and-pepper",
    _salt_and_pepper,
    "growing salt and pepper noise, by Foolbox",
    needs_gradient=False,
    random=True,
    batch=1,
)
contrast_reduction = _unbounded(
    "contrast-reduction",
    functools.partial(_searching, foolbox_name="LinearSearchContrastReductionAttack", steps=255),
    "contrast falling towards mid-grey, by Foolbox",
    needs_gradient=False,
)
iterative_gradient_sign = _unbounded(
    "iterative-gradient-sign",
    functools.partial(
        _growing, foolbox_name="LinfBasicIterativeAttack", rel_stepsize=0.1, steps=10, random_start=False
    ),
    "Kurakin et al. 2016 with growing magnitude, 10 steps each, by Foolbox",
)
