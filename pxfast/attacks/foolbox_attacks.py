"""Eight attacks of the first PixelDefend reproduction, through Foolbox: unclipped, each until misclassified.

The reproduction ran an early Foolbox whose attacks raised their magnitude step by step. Where today's Foolbox takes a
fixed magnitude, the steps are made here: whole levels up to 16, then by an eighth each, up to 255.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..base.checks import check_count, check_number, check_optional_count
from ..base.extras import require
from .attack import Attack, image_generators
from .gradients import NoGradient, frozen, predicted
from .sign_steps import uniform


def growing_levels() -> list[float]:
    """Magnitudes in [0, 1]: 1, 2, ..., 16 steps of the grid, then an eighth more each time, up to 255."""
    levels = list(range(1, 17))
    while levels[-1] < 255:
        levels.append(min(255, math.floor(levels[-1] * 1.125)))
    return [level / 255.0 for level in levels]


def foolbox_run(attack: Any, classifier: nn.Module, x: Tensor, labels: Tensor, epsilon: float | None = None) -> Tensor:
    """The result of a Foolbox attack on floating images (N, C, H, W) in [0, 1]."""
    foolbox = require("foolbox", "attacks")
    model = foolbox.PyTorchModel(classifier, bounds=(0.0, 1.0), device=x.device)
    try:
        with frozen(classifier), torch.enable_grad():
            moved: Tensor = attack(model, x, foolbox.criteria.Misclassification(labels), epsilons=epsilon)[0]
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


class _Searching(Attack):
    """A Foolbox attack that looks for the smallest magnitude itself."""

    bounded = False
    library: ClassVar[str | None] = "foolbox"

    @abc.abstractmethod
    def foolbox_attack(self) -> Any:
        """The Foolbox attack, an instance."""

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        return foolbox_run(self.foolbox_attack(), classifier, x, labels)


class _Growing(_Searching):
    """A Foolbox attack of fixed magnitude, with growing magnitude.

    euclidean: its magnitude is the root mean square of the change, not the largest.
    """

    euclidean: ClassVar[bool] = False

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        attack = self.foolbox_attack()
        scale = math.sqrt(x[0].numel()) if self.euclidean else 1.0

        def attempt(chosen: Tensor, magnitude: float) -> Tensor:
            return foolbox_run(attack, classifier, x[chosen], labels[chosen], scale * magnitude)

        return until_misclassified(classifier, x, labels, attempt)


class GradientSign(_Growing):
    """The sign of the loss's gradient with growing magnitude until the image is misclassified; it has no options.

    It is not bounded by eps. Needs Foolbox (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Goodfellow et al. 2015, by Foolbox's LinfFastGradientAttack.
    """

    name = "gradient-sign"
    source = "Goodfellow et al. 2015 with growing magnitude, by Foolbox"

    def foolbox_attack(self) -> Any:
        return require("foolbox", "attacks").attacks.LinfFastGradientAttack()


class Gradient(_Growing):
    """The loss's gradient itself with growing magnitude until the image is misclassified; it has no options.

    It is not bounded by eps. Needs Foolbox (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Foolbox's L2FastGradientAttack.
    """

    name = "gradient"
    source = "the gradient itself with growing magnitude, by Foolbox"
    euclidean = True

    def foolbox_attack(self) -> Any:
        return require("foolbox", "attacks").attacks.L2FastGradientAttack()


class IterativeGradientSign(_Growing):
    """Steps by the sign of the loss's gradient within a growing magnitude until the image is misclassified.

    It is not bounded by eps. steps: how many for each magnitude, at least 1. relative_step: their size as a fraction
    of the magnitude, above 0 and at most 1. TypeError or ValueError for others. Needs Foolbox
    (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Kurakin et al. 2016, section 2.2, by Foolbox's LinfBasicIterativeAttack.
    """

    name = "iterative-gradient-sign"
    source = "Kurakin et al. 2016 with growing magnitude, 10 steps each, by Foolbox"

    def __init__(self, *, steps: int = 10, relative_step: float = 0.1) -> None:
        self.steps: int = check_count("steps", steps, 1)
        self.relative_step: float = check_number("relative_step", relative_step, 0.0, 1.0, ends="(]")

    def foolbox_attack(self) -> Any:
        attacks = require("foolbox", "attacks").attacks
        return attacks.LinfBasicIterativeAttack(rel_stepsize=self.relative_step, steps=self.steps, random_start=False)


class DeepFoolL2(_Searching):
    """DeepFool in its L2 form, as far as it takes: it is not bounded by eps.

    steps: the most there may be, at least 1. overshoot: by which fraction the sum of the steps is lengthened, at least
    0. candidates: how many of the likeliest classes are considered, the image's own among them, at least 2; None: all.
    TypeError or ValueError for others. Needs Foolbox (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Moosavi-Dezfooli et al. 2016, section 3, by Foolbox's L2DeepFoolAttack.
    """

    name = "deepfool-l2"
    source = "Moosavi-Dezfooli et al. 2016 in L2, unclipped, by Foolbox"

    def __init__(self, *, steps: int = 50, overshoot: float = 0.02, candidates: int | None = 10) -> None:
        self.steps: int = check_count("steps", steps, 1)
        self.overshoot: float = check_number("overshoot", overshoot, 0.0)
        self.candidates: int | None = check_optional_count("candidates", candidates, 2)

    def foolbox_attack(self) -> Any:
        attacks = require("foolbox", "attacks").attacks
        return attacks.L2DeepFoolAttack(steps=self.steps, overshoot=self.overshoot, candidates=self.candidates)


class GaussianBlur(_Searching):
    """Growing Gaussian blur until the image is misclassified: it is not bounded by eps, and needs no gradient.

    steps: how many widths are tried, at least 1. TypeError or ValueError for others. Needs Foolbox
    (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Foolbox's GaussianBlurAttack.
    """

    name = "gaussian-blur"
    source = "growing Gaussian blur, by Foolbox"
    needs_gradient = False

    def __init__(self, *, steps: int = 200) -> None:
        self.steps: int = check_count("steps", steps, 1)

    def foolbox_attack(self) -> Any:
        return require("foolbox", "attacks").attacks.GaussianBlurAttack(steps=self.steps, channel_axis=1)


class ContrastReduction(_Searching):
    """Contrast falling towards mid-grey until the image is misclassified: no bound by eps, and no gradient.

    steps: how many contrasts are tried, at least 1. TypeError or ValueError for others. Needs Foolbox
    (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Foolbox's LinearSearchContrastReductionAttack.
    """

    name = "contrast-reduction"
    source = "contrast falling towards mid-grey, by Foolbox"
    needs_gradient = False

    def __init__(self, *, steps: int = 255) -> None:
        self.steps: int = check_count("steps", steps, 1)

    def foolbox_attack(self) -> Any:
        return require("foolbox", "attacks").attacks.LinearSearchContrastReductionAttack(steps=self.steps)


class UniformNoise(Attack):
    """Uniform noise of growing magnitude until the image is misclassified; it has no options.

    It is not bounded by eps, and needs no gradient. Needs Foolbox (``pip install 'pxfast[attacks]'``); ImportError
    without it.

    Source: Foolbox's LinfAdditiveUniformNoiseAttack, with random numbers of each image's own.
    """

    name = "uniform-noise"
    library: ClassVar[str | None] = "foolbox"
    source = "growing uniform noise, by Foolbox"
    bounded = False
    needs_gradient = False
    random = True

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        noise_attack = require("foolbox", "attacks").attacks.LinfAdditiveUniformNoiseAttack
        generators = image_generators(x, seed)

        def attempt(chosen: Tensor, magnitude: float) -> Tensor:
            class PerImage(noise_attack):  # type: ignore[misc, valid-type]
                """Foolbox's noise with each image's own random numbers."""

                def sample_noise(self, inputs: Any) -> Any:
                    noise = uniform([generators[i] for i in chosen.tolist()], inputs.raw, 1.0)
                    return type(inputs)(noise)

            return foolbox_run(PerImage(), classifier, x[chosen], labels[chosen], magnitude)

        return until_misclassified(classifier, x, labels, attempt)


class SaltAndPepper(Attack):
    """Salt and pepper noise of growing density until the image is misclassified.

    It is not bounded by eps, and needs no gradient. steps: how many densities are tried, at least 1. TypeError or
    ValueError for others. Needs Foolbox (``pip install 'pxfast[attacks]'``); ImportError without it.

    Source: Foolbox's SaltAndPepperNoiseAttack, with random numbers of each image's own.
    """

    name = "salt-and-pepper"
    library: ClassVar[str | None] = "foolbox"
    source = "growing salt and pepper noise, by Foolbox"
    bounded = False
    needs_gradient = False
    random = True
    batch = 1

    def __init__(self, *, steps: int = 200) -> None:
        self.steps: int = check_count("steps", steps, 1)

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        attack = require("foolbox", "attacks").attacks.SaltAndPepperNoiseAttack(steps=self.steps, channel_axis=1)
        moved = []
        devices = [x.device] if x.device.type == "cuda" else []
        for i, generator in enumerate(image_generators(x, seed)):
            with torch.random.fork_rng(
                devices=devices
            ):  # Foolbox draws from torch's own generator: one image at a time
                torch.manual_seed(int(generator.integers(2**63)))
                moved.append(foolbox_run(attack, classifier, x[i : i + 1], labels[i : i + 1]))
        return torch.cat(moved)
