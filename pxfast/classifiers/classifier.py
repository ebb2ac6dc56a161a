"""What every classifier has in common: how images enter, standardisation, and the configuration kept in files."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.checks import check_between, check_channels, check_number, check_size, put

MOST_MAPS = 1 << 14  # of any layer
BATCH_NORM_EPSILON = 1e-3  # TensorFlow's default, which the PixelDefend authors' code uses


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """What an architecture is asked for, apart from its weights; each architecture adds fields of its own.

    image_size: (H, W), positive, at most 16384. channels: 1 or 3. classes: how many labels, 2..100000.
    Raises ValueError or TypeError naming the field that is wrong. No field is larger than any use asks for: what a file
    says is built.
    """

    image_size: tuple[int, int]
    channels: int
    classes: int = dataclasses.field(default=10, kw_only=True)

    smallest_unit = 1  # the image's sides are multiples of this

    def __post_init__(self) -> None:
        put(
            self,
            image_size=check_size(self.image_size, self.smallest_unit, self.smallest_unit),
            channels=check_channels(self.channels),
        )
        self._between("classes", 2, 100_000)

    @property
    def layers(self) -> int:
        """How many layers with weights there are at least."""
        return 1

    def _between(self, field: str, least: int, most: int) -> None:
        put(self, **{field: check_between(field, getattr(self, field), least, most)})

    def _fraction(self, field: str) -> None:
        put(self, **{field: check_number(field, getattr(self, field), 0.0, 1.0, ends="[)")})


def _check_images(images: Tensor) -> None:
    kinds = "expected a tensor of uint8 images (N, C, H, W), or of floating ones in [0, 1]"
    if not isinstance(images, Tensor):
        raise TypeError(f"{kinds}, got {type(images).__name__}")
    if images.dtype != torch.uint8 and not images.dtype.is_floating_point:
        raise TypeError(f"{kinds}, got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"{kinds}, got {tuple(images.shape)}")


def standardise(images: Tensor) -> Tensor:
    """Each of the images to mean 0 and deviation 1 over its own values, in fp32.

    images: (N, C, H, W), uint8, or floating in [0, 1]. Returns fp32 of the same shape.
    TypeError or ValueError for others.

    The deviation is at least 1 / sqrt(C H W) of the 0..255 scale, so that a constant image is not divided by zero.
    """
    _check_images(images)
    return _standardised(images, torch.float32)


def _standardised(images: Tensor, dtype: torch.dtype) -> Tensor:
    x = images.to(dtype) if images.dtype == torch.uint8 else images.to(dtype) * 255.0
    mean = x.mean((1, 2, 3), keepdim=True)
    deviation = x.std((1, 2, 3), correction=0, keepdim=True)
    return (x - mean) / deviation.clamp_min(math.prod(x.shape[1:]) ** -0.5)


class Classifier(nn.Module):
    """Images (N, C, H, W), uint8 or floating in [0, 1], to logits (N, classes), fp32, or fp64 after ``double()``.

    The images are standardised inside, and then brought to the type of the weights. Raises ValueError or TypeError for
    another shape or dtype.
    """

    config: ClassifierConfig

    if TYPE_CHECKING:

        def __call__(self, images: Tensor) -> Tensor: ...

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes), fp32 or fp64, of images (N, C, H, W), uint8 or floating in [0, 1]."""
        _check_images(images)
        expected = (self.config.channels, *self.config.image_size)
        if tuple(images.shape[1:]) != expected:
            raise ValueError(f"expected images (N, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        weight = next(self.parameters())
        return self.logits(_standardised(images, torch.promote_types(weight.dtype, torch.float32)).to(weight.dtype))

    def check_image_shape(self, image_shape: tuple[int, ...], name: object) -> None:
        """ValueError, by the ``name`` of the classifier, unless its images have ``image_shape``, (C, H, W)."""
        expected = (self.config.channels, *self.config.image_size)
        if image_shape != expected:
            raise ValueError(f"{name} is a classifier of images of shape (C, H, W) = {expected}, not {image_shape}")

    def logits(self, standardised: Tensor) -> Tensor:
        """The network proper: ``standardised`` images (N, C, H, W) to logits (N, classes), fp32 or fp64.

        The images are of the weights' type.
        """
        raise NotImplementedError


class NormActivation(nn.Module):
    """Batch normalisation and (leaky) ReLU."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def __init__(self, features: int, leakiness: float = 0.0, epsilon: float = BATCH_NORM_EPSILON) -> None:
        super().__init__()
        self.norm: nn.BatchNorm2d = nn.BatchNorm2d(features, eps=epsilon)
        self.leakiness = leakiness

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(x), self.leakiness)


def convolution(in_features: int, out_features: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """size x size without bias, padded to keep the image's size, weights from N(0, 2 / fan-out)."""
    conv = nn.Conv2d(in_features, out_features, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
