"""The paper's 62-layer residual classifier (PixelDefend, appendix C.1), with the details of the authors' code."""

from __future__ import annotations

import dataclasses
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPSILON = 1e-3  # TensorFlow's default, which the authors' code uses


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """What a ResNet is, apart from its weights.

    image_size: (H, W), each a positive multiple of 4. channels: 1 or 3. widths: feature maps of the three blocks,
    (4, 8, 16) for Fashion-MNIST and (16, 32, 64) for CIFAR-10 in the paper. units: residual units per block; 10 gives
    62 layers. classes: how many labels. leakiness: slope of the leaky ReLU below zero.
    Raises ValueError naming the field that is wrong.
    """

    image_size: tuple[int, int]
    channels: int
    widths: tuple[int, int, int]
    units: int = 10
    classes: int = 10
    leakiness: float = 0.1

    def __post_init__(self) -> None:
        size, widths = tuple(self.image_size), tuple(self.widths)
        object.__setattr__(self, "image_size", size)
        object.__setattr__(self, "widths", widths)
        if len(size) != 2 or any(not isinstance(s, int) or s <= 0 or s % 4 for s in size):
            raise ValueError(f"image_size must be (H, W), positive multiples of 4, got {self.image_size!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels!r}")
        if len(widths) != 3 or any(not isinstance(w, int) or w < 1 for w in widths):
            raise ValueError(f"widths must be three positive integers, got {self.widths!r}")
        if any((wide - narrow) % 2 or wide < narrow for narrow, wide in itertools.pairwise(widths)):
            raise ValueError(f"widths must grow by even steps (shortcuts are padded at both ends), got {self.widths!r}")
        for field, least in (("units", 1), ("classes", 2)):
            value = getattr(self, field)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{field} must be an integer of at least {least}, got {value!r}")
        if not 0.0 <= self.leakiness < 1.0:
            raise ValueError(f"leakiness must be in [0, 1), got {self.leakiness!r}")


def standardise(images: Tensor) -> Tensor:
    """Each image to mean 0 and deviation 1 over its own values: uint8, or floating in [0, 1], to fp32 (N, C, H, W).

    The deviation is at least 1 / sqrt(C H W) of the 0..255 scale, so that a constant image is not divided by zero.
    """
    x = images.float() if images.dtype == torch.uint8 else images.float() * 255.0
    mean = x.mean((1, 2, 3), keepdim=True)
    deviation = x.std((1, 2, 3), correction=0, keepdim=True)
    return (x - mean) / deviation.clamp_min(x[0].numel() ** -0.5)


class NormActivation(nn.Module):
    """Batch normalisation and leaky ReLU."""

    def __init__(self, features: int, leakiness: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(features, eps=BATCH_NORM_EPSILON)
        self.leakiness = leakiness

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), self.leakiness)


def convolution(in_features: int, out_features: int, stride: int = 1) -> nn.Conv2d:
    """3x3 without bias, weights from N(0, 2 / fan-out)."""
    conv = nn.Conv2d(in_features, out_features, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class ResidualUnit(nn.Module):
    """x + conv(act(conv(act(x)))), pre-activated; wider units pool the shortcut and pad it with zero features.

    ``shared``: the shortcut starts after the first activation (only in the network's first unit).
    """

    def __init__(self, i: int, o: int, *, stride: int, shared: bool, leakiness: float) -> None:
        super().__init__()
        self.activation1 = NormActivation(i, leakiness)
        self.conv1 = convolution(i, o, stride)
        self.activation2 = NormActivation(o, leakiness)
        self.conv2 = convolution(o, o)
        self.stride, self.shared, self.padding = stride, shared, (o - i) // 2

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activation1(x)
        shortcut = activated if self.shared else x
        if self.stride > 1:
            shortcut = F.avg_pool2d(shortcut, self.stride)
        if self.padding:
            shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return shortcut + self.conv2(self.activation2(self.conv1(activated)))


class ResNet(nn.Module):
    """Images (N, C, H, W), uint8 or floating in [0, 1], to logits (N, classes), fp32.

    Layers: a convolution, 3 blocks of ``units`` residual units of two convolutions, and a linear layer. The images
    are standardised inside. Raises ValueError or TypeError for another shape or dtype.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.initial = convolution(config.channels, config.widths[0])
        units = []
        width = config.widths[0]
        for block, wider in enumerate(config.widths):
            for unit in range(config.units):
                first = unit == 0
                stride = 2 if first and block > 0 else 1
                shared = first and block == 0
                units.append(ResidualUnit(width, wider, stride=stride, shared=shared, leakiness=config.leakiness))
                width = wider
        self.units = nn.Sequential(*units)
        self.final = NormActivation(width, config.leakiness)
        self.output = nn.Linear(width, config.classes)
        nn.init.zeros_(self.output.bias)

    def forward(self, images: Tensor) -> Tensor:
        expected = (self.config.channels, *self.config.image_size)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(f"expected images (N, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
            raise TypeError(f"expected uint8 images, or floating ones in [0, 1], got {images.dtype}")
        return self.logits(standardise(images))

    def logits(self, standardised: Tensor) -> Tensor:
        """The network proper, after standardisation: fp32 (N, C, H, W) to logits (N, classes)."""
        x = self.units(self.initial(standardised.contiguous(memory_format=torch.channels_last)))
        return self.output(self.final(x).mean((2, 3))).float()
