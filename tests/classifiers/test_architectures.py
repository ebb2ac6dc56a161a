"""Architectures of classifiers are the published ones, layer by layer."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.helpers import bundled_images
from support.small_classifiers import FASHION, SMALL_ONES, random_classifier
from torch import Tensor, nn

from pxfast.classifiers import ARCHITECTURES, ClassifierConfig, ResNet, architecture, build
from pxfast.classifiers.classifier import NormActivation
from pxfast.classifiers.resnet import ResidualUnit
from pxfast.classifiers.wide_resnet import WideUnit
from pxfast.data.datasets import DATASETS


def layer_table(config: ClassifierConfig) -> tuple[list[tuple[str, int, int, int]], int]:
    """Every convolution and linear layer in the order of evaluation: kind, features in and out, height of the result.

    And the number of parameters.

    The 1x1 convolutions of shortcuts are left out. Nothing is computed: 'meta' tensors have a shape alone.
    """
    table = []
    with torch.device("meta"):
        model = build(config)

    def note(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(module, nn.Linear):
            table.append(("linear", module.in_features, module.out_features, 1))
        elif module.kernel_size != (1, 1):
            assert module.kernel_size == (3, 3)
            table.append(("conv", module.in_channels, module.out_channels, output.shape[2]))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(note)
    H, W = config.image_size
    logits = model(torch.zeros(2, config.channels, H, W, dtype=torch.uint8, device="meta"))
    assert logits.shape == (2, 10)
    assert logits.dtype == torch.float32
    return table, sum(parameter.numel() for parameter in model.parameters())


def convolutions(*rows: tuple[int, int, int], channels: int) -> list[tuple[str, int, int, int]]:
    """A layer table from rows of (how many, feature maps, height)."""
    table = []
    for count, maps, height in rows:
        for _ in range(count):
            table.append(("conv", channels, maps, height))
            channels = maps
    return table


def linear(i: int, o: int) -> tuple[str, int, int, int]:
    return ("linear", i, o, 1)


# Written down from the papers' tables: appendix C.1 and C.2 of PixelDefend, table 1 of He et al. 2016 (with the 3x3
# first convolution for small images) and of Zagoruyko & Komodakis 2016.
TABLES = {
    ("resnet62", "cifar10"): [
        *convolutions((1 + 20, 16, 32), (20, 32, 16), (20, 64, 8), channels=3),
        linear(64, 10),
    ],
    ("resnet62", "fashion-mnist"): [
        *convolutions((1 + 20, 4, 28), (20, 8, 14), (20, 16, 7), channels=1),
        linear(16, 10),
    ],
    ("vgg16", "cifar10"): [
        *convolutions((2, 16, 32), (2, 128, 16), (3, 512, 8), (3, 512, 4), channels=3),
        linear(512 * 2 * 2, 512),
        linear(512, 10),
    ],
    ("vgg16", "fashion-mnist"): [
        *convolutions((2, 4, 28), (2, 32, 14), (3, 128, 7), (3, 128, 3), channels=1),
        linear(128, 128),
        linear(128, 10),
    ],
    ("vgg16-released", "cifar10"): [
        *convolutions((2, 64, 32), (2, 128, 16), (3, 256, 8), (3, 512, 4), (3, 512, 2), channels=3),
        linear(512, 512),
        linear(512, 10),
    ],
    ("vgg16-released", "fashion-mnist"): [
        *convolutions((2, 16, 28), (2, 32, 14), (3, 64, 7), (3, 128, 3), (3, 128, 1), channels=1),
        linear(128, 128),
        linear(128, 10),
    ],
    ("resnet18", "cifar10"): [
        *convolutions((1 + 4, 64, 32), (4, 128, 16), (4, 256, 8), (4, 512, 4), channels=3),
        linear(512, 10),
    ],
    ("resnet18", "fashion-mnist"): [
        *convolutions((1 + 4, 64, 28), (4, 128, 14), (4, 256, 7), (4, 512, 4), channels=1),
        linear(512, 10),
    ],
    ("wrn28-10", "cifar10"): [
        *convolutions((1, 16, 32), (8, 160, 32), (8, 320, 16), (8, 640, 8), channels=3),
        linear(640, 10),
    ],
    ("wrn28-10", "fashion-mnist"): [
        *convolutions((1, 16, 28), (8, 160, 28), (8, 320, 14), (8, 640, 7), channels=1),
        linear(640, 10),
    ],
}
# Published counts: 11,173,962 (ResNet-18 for CIFAR-10) and 36.5 million (WRN-28-10, table 1 of its paper); the others
# follow from the tables: 9 i o per convolution, 2 o per batch normalisation, (i + 1) o per linear layer.
PARAMETERS = {
    ("resnet62", "cifar10"): 950_234,
    ("resnet62", "fashion-mnist"): 60_374,
    ("vgg16", "cifar10"): 13_615_866,
    ("vgg16", "fashion-mnist"): 804_174,
    ("vgg16-released", "cifar10"): 14_986_698,
    ("resnet18", "cifar10"): 11_173_962,
    ("wrn28-10", "cifar10"): 36_479_194,
}


@pytest.mark.parametrize(("name", "dataset"), TABLES)
def test_architecture_is_the_published_one(name: str, dataset: str) -> None:
    table, parameters = layer_table(architecture(name, DATASETS[dataset]))
    assert table == TABLES[name, dataset]
    if (name, dataset) in PARAMETERS:
        assert parameters == PARAMETERS[name, dataset]


def test_every_architecture_is_in_the_tables() -> None:
    assert {name for name, _ in TABLES} == set(ARCHITECTURES)
    with pytest.raises(ValueError, match=r"'vgg19'.*resnet62"):
        architecture("vgg19", (1, 28, 28))


@pytest.mark.parametrize("name", ["vgg16", "vgg16-released"])
def test_parameters_of_vgg_follow_from_the_table(name: str) -> None:
    """Counted from the layers, so that a bias or a missing normalisation would show."""
    table = TABLES[name, "cifar10"]
    counted = sum(9 * i * o + 2 * o if kind == "conv" else (i + 1) * o for kind, i, o, _ in table)
    assert counted == PARAMETERS[name, "cifar10"]


def test_vgg_drops_features_only_in_training_and_before_both_linear_layers() -> None:
    model = random_classifier(SMALL_ONES["vgg"])
    images = bundled_images(1)[:4]
    torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)
    seen = []
    for linear_layer in (model.hidden, model.output):
        linear_layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    model(images)
    whole = [float((values == 0).double().mean()) for values in seen]
    seen.clear()
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model(images.repeat(16, 1, 1, 1))
    for before, values in zip(whole, seen, strict=True):
        dropped = float((values == 0).double().mean())
        # of what is not zero anyway (by ReLU), half
        assert dropped == pytest.approx(before + 0.5 * (1 - before), abs=0.12)


def test_wider_units_of_a_wide_resnet_project_the_activated_input() -> None:
    unit = WideUnit(4, 8, stride=2, dropout=0.0).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(3, 4, 6, 6)
    expected = F.conv2d(F.relu(x / math.sqrt(1 + 1e-5)), unit.shortcut.weight, stride=2)
    torch.testing.assert_close(unit(x), expected)
    plain = WideUnit(4, 4, stride=1, dropout=0.0).eval()
    nn.init.zeros_(plain.conv2.weight)
    assert torch.equal(plain(x), x)


def test_shortcut_is_average_pooling_and_zero_features() -> None:
    unit = ResidualUnit(4, 8, stride=2, shared=False, leakiness=0.1).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(3, 4, 6, 6)
    y = unit(x)
    torch.testing.assert_close(y[:, 2:6], F.avg_pool2d(x, 2))
    assert (y[:, :2] == 0).all()
    assert (y[:, 6:] == 0).all()


def test_only_the_first_unit_shares_its_activation_with_the_shortcut() -> None:
    assert [unit.shared for unit in ResNet(FASHION).units] == [True] + [False] * 29
    unit = ResidualUnit(4, 4, stride=1, shared=True, leakiness=0.1).eval()
    nn.init.zeros_(unit.conv2.weight)
    x = torch.randn(3, 4, 6, 6)
    torch.testing.assert_close(unit(x), unit.activation1(x))


def test_activation_is_leaky() -> None:
    activation = NormActivation(1, 0.1).eval()
    x = torch.tensor([-2.0, 3.0]).reshape(1, 1, 1, 2)
    expected = torch.tensor([-0.2, 3.0]).reshape(1, 1, 1, 2) / math.sqrt(1.001)
    torch.testing.assert_close(activation(x), expected)
