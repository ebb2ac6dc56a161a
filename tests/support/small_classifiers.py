"""Small classifiers of every architecture, with random weights."""

import torch
from torch import nn

from pxfast.classifiers import (
    Classifier,
    ClassifierConfig,
    ResNet18Config,
    ResNetConfig,
    VGGConfig,
    WideResNetConfig,
    build,
)

FASHION = ResNetConfig((28, 28), 1, (4, 8, 16))
CIFAR = ResNetConfig((32, 32), 3, (16, 32, 64))
SMALL = ResNetConfig((28, 28), 1, (4, 8, 16), units=1)
SMALL_ONES = {
    "resnet": SMALL,
    "vgg": VGGConfig((28, 28), 1, ((4, 2), (8, 1)), hidden=8),
    "resnet18": ResNet18Config((28, 28), 1),
    "wide-resnet": WideResNetConfig((28, 28), 1, depth=10, widen=1),
}


def random_classifier(config: ClassifierConfig, seed: int = 0) -> Classifier:
    """In eval mode, with batch normalisation as training would leave it rather than at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.running_var.uniform_(0.5, 1.5)
                    module.weight.uniform_(0.5, 1.5)
                    module.running_mean.normal_(0.0, 0.2)
                    module.bias.normal_(0.0, 0.2)
    return model.eval()
