"""ResNet-18 (He et al. 2016) for small images, the classifier of the PixelDefend reproduction."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..base.checks import check_instance
from ..tensors.floating import widened
from .classifier import Classifier, ClassifierConfig, convolution


@dataclasses.dataclass(frozen=True)
class ResNet18Config(ClassifierConfig):
    """What a ResNet-18 is, apart from its weights: image_size (H, W), channels 1 or 3, classes.

    Raises ValueError naming the field that is wrong.
    """


class ResNet18(Classifier):
    """torchvision's ResNet-18 with the usual change for small images: a 3x3 first convolution and no max pooling.

    config: its configuration; the weights are random.
    """

    config: ResNet18Config

    def __init__(self, config: ResNet18Config) -> None:
        from torchvision.models import resnet18

        super().__init__()
        self.config = check_instance("config", config, ResNet18Config)
        self.network: nn.Module = resnet18(weights=None, num_classes=config.classes)
        self.network.conv1 = convolution(config.channels, 64)
        self.network.maxpool = nn.Identity()

    def logits(self, standardised: Tensor) -> Tensor:
        logits: Tensor = self.network(standardised.contiguous(memory_format=torch.channels_last))
        return widened(logits)
