"""Image classifiers: the networks that purification protects."""

from .architectures import ARCHITECTURES, architecture, build
from .classifier import Classifier, ClassifierConfig, standardise
from .inspection import check_classifier
from .prediction import accuracy, predict
from .random_above_threshold import RandomAboveThreshold
from .resnet import ResNet, ResNetConfig
from .resnet18 import ResNet18, ResNet18Config
from .training import ClassifierSettings, train_classifier
from .vgg import VGG, VGGConfig
from .weights import load_classifier, save_classifier
from .wide_resnet import WideResNet, WideResNetConfig

__all__ = [
    "ARCHITECTURES",
    "VGG",
    "Classifier",
    "ClassifierConfig",
    "ClassifierSettings",
    "RandomAboveThreshold",
    "ResNet",
    "ResNet18",
    "ResNet18Config",
    "ResNetConfig",
    "VGGConfig",
    "WideResNet",
    "WideResNetConfig",
    "accuracy",
    "architecture",
    "build",
    "check_classifier",
    "load_classifier",
    "predict",
    "save_classifier",
    "standardise",
    "train_classifier",
]
