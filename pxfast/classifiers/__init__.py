"""Image classifiers: the networks that purification protects."""

from .prediction import accuracy, predict
from .resnet import ResNet, ResNetConfig
from .weights import load_classifier, save_classifier

__all__ = ["ResNet", "ResNetConfig", "accuracy", "load_classifier", "predict", "save_classifier"]
