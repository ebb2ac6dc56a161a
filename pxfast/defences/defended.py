"""A classifier behind its defences, as one module that attack libraries take as it stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..base.checks import check_flag, check_seed, check_seeds
from ..base.records import shown
from ..data.images import TORCH_DTYPES, clipped
from ..tensors.seeds import derived_seeds, image_seeds
from .protocol import is_stochastic


class Defended(nn.Module):
    """Images (N, C, H, W), uint8 or floating in [0, 1], through the defences in their order, to logits (N, classes).

    classifier: takes floating images in [0, 1] and gives the logits. defences: modules that give images of
    the shape they got, such as :class:`pxfast.Purifier` and :class:`FeatureSqueezing`. uint8 images become fp32
    multiples of 1/255 first, so both forms of an image give the same logits. Nothing is rounded unless a defence does
    it: the purifier rounds to the nearest multiple of 1/255, feature squeezing to its own colours.

    Gradients are what the defences make of them, by default straight-through: a gradient-based attack on this module
    is then BPDA (Athalye et al. 2018). The module starts in the classifier's mode, training or eval. Values outside
    [0, 1] are an error of the purifier, unless by less than 1e-6, which is rounding. clip: they are brought to the
    nearest end first, where their gradient is zero; for pipelines that overshoot, such as preprocessing of Foolbox's.

    Where a defence is stochastic (see :mod:`pxfast.defences.protocol`), the logits are the mean over as many draws as
    it asks for. Their random numbers depend on the image's own values and on ``seed``, 0 to
    2^63 - 1, so that the logits of an image do not depend on its batch.
    Raises TypeError when one of the parts is no module, or a stochastic one lacks what such need, and TypeError or
    ValueError for another seed.
    """

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def __init__(
        self, classifier: nn.Module, defences: Iterable[nn.Module] = (), *, seed: int = 0, clip: bool = False
    ) -> None:
        super().__init__()
        expected = "expected a classifier and a list of defences, all nn.Module"
        if not isinstance(defences, Iterable):
            raise TypeError(f"{expected}, got defences={shown(defences)}")
        defences = tuple(defences)
        for part in (classifier, *defences):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{expected}, got {shown(part)}")
        self.runs: int = max((defence.runs for defence in defences if is_stochastic(defence)), default=0)
        self.defences: nn.Sequential = nn.Sequential(*defences)
        self.classifier = classifier
        self.seed: int = check_seed(seed)
        self.clip: bool = check_flag("clip", clip)
        self.training: bool = classifier.training  # the parts themselves keep their modes
        self.defences.training = classifier.training

    def defend(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """What the classifier gets to see: floating images (N, C, H, W) in [0, 1].

        seeds: of the stochastic defences' random numbers, an integer in 0..2^63 - 1 for each image; None: the first
        of the draws over which the logits are averaged.
        """
        if not isinstance(images, Tensor) or images.dtype not in TORCH_DTYPES:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"expected a tensor of uint8 images, or of floating ones in [0, 1], got {kind}")
        if images.dim() != 4:
            raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
        x = images.float() / 255 if images.dtype == torch.uint8 else clipped(images, self.clip)
        if not self.runs:
            defended: Tensor = self.defences(x)
            return defended
        given = derived_seeds(image_seeds(x, self.seed), 0) if seeds is None else check_seeds(seeds, len(x))
        for place, defence in enumerate(self.defences):
            x = defence.draw(x, derived_seeds(given, place)) if is_stochastic(defence) else defence(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        if not self.runs or not isinstance(images, Tensor) or images.dim() != 4:  # the last two: defend's errors
            logits: Tensor = self.classifier(self.defend(images))
            return logits
        images = clipped(images, self.clip)
        seeds = image_seeds(images / 255 if images.dtype == torch.uint8 else images, self.seed)
        draws = (self.classifier(self.defend(images, derived_seeds(seeds, run))) for run in range(self.runs))
        return torch.stack(list(draws)).mean(dim=0)

    def extra_repr(self) -> str:
        shown = [f"seed={self.seed}"] if self.runs else []
        return ", ".join([*shown, "clip=True"] if self.clip else shown)
