"""A classifier behind its defences, as one module that attack libraries take as it stands."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..images import TORCH_DTYPES


class Defended(nn.Module):
    """Images (N, C, H, W), uint8 or floating in [0, 1], through the defences in their order, to logits (N, classes).

    classifier: takes floating images in [0, 1] and gives the logits. defences: modules that give images of
    the shape they got, such as :class:`pxfast.Purifier` and :class:`FeatureSqueezing`. uint8 images become fp32
    multiples of 1/255 first, so both forms of an image give the same logits. Nothing is rounded unless a defence does
    it: the purifier rounds to the nearest multiple of 1/255, feature squeezing to its own colours.

    Gradients are what the defences make of them, by default straight-through: a gradient-based attack on this module
    is then BPDA (Athalye et al. 2018). The module starts in the classifier's mode, training or eval. Values outside
    [0, 1] are an error of the purifier, not clipped.
    Raises TypeError when one of the parts is no module.
    """

    def __init__(self, classifier: nn.Module, defences: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        defences = tuple(defences)
        for part in (classifier, *defences):
            if not isinstance(part, nn.Module):
                raise TypeError(f"expected a classifier and a list of defences, all nn.Module, got {part!r}")
        self.defences = nn.Sequential(*defences)
        self.classifier = classifier
        self.train(classifier.training)

    def defend(self, images: Tensor) -> Tensor:
        """What the classifier gets to see: floating images (N, C, H, W) in [0, 1]."""
        if not isinstance(images, Tensor) or images.dtype not in TORCH_DTYPES:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"expected a tensor of uint8 images, or of floating ones in [0, 1], got {kind}")
        if images.dim() != 4:
            raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
        return self.defences(images.float() / 255 if images.dtype == torch.uint8 else images)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.defend(images))
