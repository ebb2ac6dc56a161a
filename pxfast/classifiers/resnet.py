"""The paper's 62-layer residual classifier (PixelDefend, appendix C.1), with the details of the authors' code."""

from __future__ import annotations

import dataclasses
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_between, check_instance
from ..tensors.floating import widened
from .classifier import MOST_MAPS, Classifier, ClassifierConfig, NormActivation, convolution


@dataclasses.dataclass(frozen=True)
class ResNetConfig(ClassifierConfig):
    """What a ResNet is, apart from its weights.

    image_size: (H, W), each a positive multiple of 4. channels: 1 or 3. widths: feature maps of the three blocks,
    (4, 8, 16) for Fashion-MNIST and (16, 32, 64) for CIFAR-10 in the paper. units: residual units per block; 10 gives
    62 layers. classes: how many labels. leakiness: slope of the leaky ReLU below zero.
    Raises ValueError or TypeError naming the field that is wrong.
    """

    widths: tuple[int, int, int]
    units: int = 10
    leakiness: float = 0.1

    smallest_unit = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        widths = self.widths
        if not isinstance(widths, (tuple, list)) or len(widths) != 3:
            raise ValueError(f"widths must be three positive integers, got {widths!r}")
        for width in widths:
            check_between("widths", width, 1, MOST_MAPS)
        object.__setattr__(self, "widths", tuple(widths))
        if any((wide - narrow) % 2 or wide < narrow for narrow, wide in itertools.pairwise(widths)):
            raise ValueError(f"widths must grow by even steps (shortcuts are padded at both ends), got {self.widths!r}")
        self._between("units", 1, 1000)
        self._fraction("leakiness")

    @property
    def layers(self) -> int:
        return 2 * 3 * self.units


class ResidualUnit(nn.Module):
    """x + conv(act(conv(act(x)))), pre-activated; wider units pool the shortcut and pad it with zero features.

    ``shared``: the shortcut starts after the first activation (only in the network's first unit).
    """

    def __init__(self, i: int, o: int, *, stride: int, shared: bool, leakiness: float) -> None:
        super().__init__()
        self.activation1: NormActivation = NormActivation(i, leakiness)
        self.conv1: nn.Conv2d = convolution(i, o, stride)
        self.activation2: NormActivation = NormActivation(o, leakiness)
        self.conv2: nn.Conv2d = convolution(o, o)
        self.stride = stride
        self.shared = shared
        self.padding: int = (o - i) // 2

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation1(x)
        shortcut = activated if self.shared else x
        if self.stride > 1:
            shortcut = F.avg_pool2d(shortcut, self.stride)
        if self.padding:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        found: Tensor = self.conv2(self.activation2(self.conv1(activated)))
        return shortcut + found


class ResNet(Classifier):
    """A convolution, 3 blocks of ``units`` residual units of two convolutions, and a linear layer.

    config: its configuration; the weights are random.
    """

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = check_instance("config", config, ResNetConfig)
        self.initial: nn.Conv2d = convolution(config.channels, config.widths[0])
        units = []
        width = config.widths[0]
        for block, wider in enumerate(config.widths):
            for unit in range(config.units):
                first = unit == 0
                stride = 2 if first and block > 0 else 1
                shared = first and block == 0
                units.append(ResidualUnit(width, wider, stride=stride, shared=shared, leakiness=config.leakiness))
                width = wider
        self.units: nn.Sequential = nn.Sequential(*units)
        self.final: NormActivation = NormActivation(width, config.leakiness)
        self.output: nn.Linear = nn.Linear(width, config.classes)
        nn.init.zeros_(self.output.bias)

    def logits(self, standardised: Tensor) -> Tensor:
        x = self.units(self.initial(standardised.contiguous(memory_format=torch.channels_last)))
        logits: Tensor = self.output(self.final(x).mean((2, 3)))
        return widened(logits)
