"""The classifiers of the literature by name, in the sizes that it gives them for each data set."""

from __future__ import annotations

from collections.abc import Callable

from ..base.checks import check_channels, check_text
from ..base.records import shown
from ..data.datasets import class_count, image_shape
from .classifier import Classifier, ClassifierConfig
from .resnet import ResNet, ResNetConfig
from .resnet18 import ResNet18, ResNet18Config
from .vgg import VGG, VGGConfig
from .wide_resnet import WideResNet, WideResNetConfig

# the kinds that classifier files name, each with what its configuration is
KINDS: dict[str, tuple[type[Classifier], type[ClassifierConfig]]] = {
    "resnet": (ResNet, ResNetConfig),
    "vgg": (VGG, VGGConfig),
    "resnet18": (ResNet18, ResNet18Config),
    "wide-resnet": (WideResNet, WideResNetConfig),
}

Size = tuple[int, int]


def _quarter(maps: int, channels: int) -> int:
    """Feature maps for images of so many channels: the paper's networks for grey images have a quarter of them."""
    return maps if channels == 3 else maps // 4


def _resnet62(size: Size, channels: int, classes: int) -> ClassifierConfig:
    narrow, middle, wide = (_quarter(maps, channels) for maps in (16, 32, 64))
    return ResNetConfig(size, channels, (narrow, middle, wide), classes=classes)


def _vgg(*blocks: tuple[int, int]) -> Callable[[Size, int, int], ClassifierConfig]:
    def config(size: Size, channels: int, classes: int) -> ClassifierConfig:
        scaled = tuple((_quarter(maps, channels), convolutions) for maps, convolutions in blocks)
        return VGGConfig(size, channels, scaled, _quarter(512, channels), classes=classes)

    return config


def _resnet18(size: Size, channels: int, classes: int) -> ClassifierConfig:
    return ResNet18Config(size, channels, classes=classes)


def _wrn28_10(size: Size, channels: int, classes: int) -> ClassifierConfig:
    return WideResNetConfig(size, channels, classes=classes)


# vgg16 is what appendix C.2 prints: 10 convolutions and 2 linear layers. vgg16-released has the 13 convolutions, and
# the feature maps, of the code that the authors released under the same name.
ARCHITECTURES: dict[str, Callable[[Size, int, int], ClassifierConfig]] = {
    "resnet62": _resnet62,
    "vgg16": _vgg((16, 2), (128, 2), (512, 3), (512, 3)),
    "vgg16-released": _vgg((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "resnet18": _resnet18,
    "wrn28-10": _wrn28_10,
}


def architecture(name: str, image_shape: tuple[int, int, int], *, classes: int = 10) -> ClassifierConfig:
    """The configuration of a named classifier.

    image_shape: (C, H, W) of its images. classes: how many labels.
    name: 'resnet62' or 'vgg16' (the paper's; grey images get a quarter of the feature maps), 'vgg16-released' (the
    feature maps of the authors' code, which are not those of the paper), 'resnet18' (the reproduction's) or
    'wrn28-10' (ADP's). Raises TypeError or ValueError for another name or a shape that the network does not take.
    """
    if check_text("an architecture", name) not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {name!r}; known: {', '.join(ARCHITECTURES)}")
    if not isinstance(image_shape, (tuple, list)) or len(image_shape) != 3:
        raise TypeError(f"image_shape must be (C, H, W), got {shown(image_shape)}")
    channels, H, W = check_channels(image_shape[0]), image_shape[1], image_shape[2]
    return ARCHITECTURES[name]((H, W), channels, classes)


def architecture_for(name: str, dataset: str) -> ClassifierConfig:
    """The configuration of a named classifier for a data set: a known name or a folder of images.

    ValueError for an unknown name or data set, and for a folder without classes, or with one alone.
    """
    shape, classes = image_shape(dataset), class_count(dataset)
    if classes < 2:
        raise ValueError(
            f"{dataset} has the folder of one class alone: a classifier needs a subfolder for each of several"
        )
    return architecture(name, shape, classes=classes)


def kind_of(config: ClassifierConfig) -> str:
    """The name that classifier files give a configuration's kind of network."""
    for name, (_, config_type) in KINDS.items():
        if type(config) is config_type:
            return name
    raise TypeError(f"expected the configuration of a classifier, got {type(config).__name__}")


def build(config: ClassifierConfig) -> Classifier:
    """A classifier of this ``config`` with random weights, in training mode. TypeError for another kind of object."""
    return KINDS[kind_of(config)][0](config)
