"""Wide residual networks (Zagoruyko & Komodakis 2016); WRN-28-10 is the classifier of ADP (Yoon et al. 2021)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..base.checks import check_instance
from ..tensors.floating import widened
from .classifier import Classifier, ClassifierConfig, NormActivation, convolution

EPSILON = 1e-5  # PyTorch's default, as in the authors' code and its ports
STEM = 16
DEEPEST = 4 + 6 * 300  # layers


@dataclasses.dataclass(frozen=True)
class WideResNetConfig(ClassifierConfig):
    """What a WRN-depth-widen is, apart from its weights.

    image_size: (H, W). channels: 1 or 3. depth: 6 n + 4 layers, n residual units in each of three blocks. widen:
    multiplies the feature maps 16, 32 and 64 of the blocks. dropout: probability of dropping a feature between the
    two convolutions of a unit, while training. classes: how many labels.
    Raises ValueError or TypeError naming the field that is wrong.
    """

    depth: int = 28
    widen: int = 10
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.depth, int) or not 10 <= self.depth <= DEEPEST or (self.depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 in 10..{DEEPEST}, for an n of at least 1, got {self.depth!r}")
        self._between("widen", 1, 256)
        self._fraction("dropout")

    @property
    def layers(self) -> int:
        return self.depth


class WideUnit(nn.Module):
    """x + conv(dropout(act(conv(act(x))))), pre-activated; a wider unit's shortcut is a 1x1 convolution of act(x)."""

    def __init__(self, i: int, o: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.activation1: NormActivation = NormActivation(i, epsilon=EPSILON)
        self.conv1: nn.Conv2d = convolution(i, o, stride)
        self.activation2: NormActivation = NormActivation(o, epsilon=EPSILON)
        self.dropout: nn.Dropout = nn.Dropout(dropout)
        self.conv2: nn.Conv2d = convolution(o, o)
        self.shortcut: nn.Conv2d | None = None if i == o and stride == 1 else convolution(i, o, stride, size=1)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation1(x)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        found: Tensor = self.conv2(self.dropout(self.activation2(self.conv1(activated))))
        return shortcut + found


class WideResNet(Classifier):
    """A convolution, 3 blocks of residual units of two convolutions, and a linear layer.

    config: its configuration; the weights are random.
    """

    config: WideResNetConfig

    def __init__(self, config: WideResNetConfig) -> None:
        super().__init__()
        self.config = check_instance("config", config, WideResNetConfig)
        self.initial: nn.Conv2d = convolution(config.channels, STEM)
        units, width = [], STEM
        for block in range(3):
            wider = STEM * config.widen << block
            for unit in range((config.depth - 4) // 6):
                stride = 2 if block > 0 and unit == 0 else 1
                units.append(WideUnit(width, wider, stride=stride, dropout=config.dropout))
                width = wider
        self.units: nn.Sequential = nn.Sequential(*units)
        self.final: NormActivation = NormActivation(width, epsilon=EPSILON)
        self.output: nn.Linear = nn.Linear(width, config.classes)
        nn.init.zeros_(self.output.bias)

    def logits(self, standardised: Tensor) -> Tensor:
        x = self.units(self.initial(standardised.contiguous(memory_format=torch.channels_last)))
        logits: Tensor = self.output(self.final(x).mean((2, 3)))
        return widened(logits)
