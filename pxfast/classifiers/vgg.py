"""The paper's VGG classifier (PixelDefend, appendix C.2): batch normalisation after every convolution, dropout."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_between, check_instance
from ..tensors.floating import widened
from .classifier import MOST_MAPS, Classifier, ClassifierConfig, NormActivation, convolution

MOST_BLOCKS = 32  # and convolutions of a block


@dataclasses.dataclass(frozen=True)
class VGGConfig(ClassifierConfig):
    """What a VGG is, apart from its weights.

    image_size: (H, W). channels: 1 or 3. blocks: (feature maps, convolutions) of each feature block; each ends in a
    2x2 max pooling, which drops an odd last row or column and is left out once the image is down to one row or column.
    hidden: features of the classifier block's first linear layer. dropout: probability of dropping a feature before
    each linear layer, while training. classes: how many labels. Raises ValueError or TypeError naming the field that is
    wrong.
    """

    blocks: tuple[tuple[int, int], ...]
    hidden: int
    dropout: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.blocks
        if (
            not isinstance(given, (tuple, list))
            or not 1 <= len(given) <= MOST_BLOCKS
            or any(not isinstance(block, (tuple, list)) or len(block) != 2 for block in given)
        ):
            raise ValueError(f"blocks must be 1..{MOST_BLOCKS} pairs of positive integers, got {given!r}")
        for maps, convolutions in given:
            check_between("the feature maps in blocks", maps, 1, MOST_MAPS)
            check_between("the convolutions in blocks", convolutions, 1, MOST_BLOCKS)
        object.__setattr__(self, "blocks", tuple((maps, convolutions) for maps, convolutions in given))
        self._between("hidden", 1, MOST_MAPS)
        self._fraction("dropout")

    @property
    def layers(self) -> int:
        return sum(convolutions for _, convolutions in self.blocks)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) after each block."""
        sizes = [self.image_size]
        for _ in self.blocks:
            H, W = sizes[-1]
            sizes.append((H // 2, W // 2) if min(H, W) > 1 else (H, W))
        return sizes[1:]


class VGG(Classifier):
    """Feature blocks of 3x3 convolutions, each followed by batch normalisation and ReLU, then two linear layers.

    config: its configuration; the weights are random.
    """

    config: VGGConfig

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = check_instance("config", config, VGGConfig)
        blocks, width, before = [], config.channels, config.image_size
        for (maps, convolutions), size in zip(config.blocks, config.sizes, strict=True):
            layers: list[nn.Module] = []
            for _ in range(convolutions):
                layers += [convolution(width, maps), NormActivation(maps)]
                width = maps
            if size != before:
                layers.append(nn.MaxPool2d(2))
            blocks.append(nn.Sequential(*layers))
            before = size
        self.blocks: nn.Sequential = nn.Sequential(*blocks)
        H, W = before
        self.dropout: nn.Dropout = nn.Dropout(config.dropout)
        self.hidden: nn.Linear = nn.Linear(width * H * W, config.hidden)
        self.output: nn.Linear = nn.Linear(config.hidden, config.classes)
        for linear in (self.hidden, self.output):
            nn.init.zeros_(linear.bias)
        nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")

    def logits(self, standardised: Tensor) -> Tensor:
        x = self.blocks(standardised.contiguous(memory_format=torch.channels_last))
        x = F.relu(self.hidden(self.dropout(x.flatten(1))))
        logits: Tensor = self.output(self.dropout(x))
        return widened(logits)
