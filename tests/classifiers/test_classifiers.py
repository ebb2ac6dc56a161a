"""Classifiers: what they make of images, and of wrong ones."""

import pytest
import torch
import torch.nn.functional as F
from support.helpers import bundled_images
from support.small_classifiers import FASHION, SMALL_ONES, random_classifier
from torch import Tensor, nn

from pxfast.classifiers import (
    ClassifierConfig,
    ResNet18Config,
    ResNetConfig,
    VGGConfig,
    WideResNetConfig,
    accuracy,
    predict,
)
from pxfast.classifiers.classifier import standardise


def test_standardise() -> None:
    images = bundled_images(1)[:8]
    x = standardise(images)
    torch.testing.assert_close(x.mean((1, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std((1, 2, 3), correction=0), torch.ones(8))
    assert (standardise(torch.full((1, 1, 28, 28), 7, dtype=torch.uint8)) == 0).all()


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_uint8_and_floats_in_0_1_give_the_same_logits(kind: str) -> None:
    model, images = random_classifier(SMALL_ONES[kind]), bundled_images(1)[:8]
    assert torch.equal(model(images), model(images.float() / 255))
    torch.testing.assert_close(model(images), model(images.double() / 255))


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_contrast_and_brightness_do_not_matter(kind: str) -> None:
    """Each image is standardised within the model, whatever the architecture."""
    model, images = random_classifier(SMALL_ONES[kind]), bundled_images(1)[:4] // 2
    torch.testing.assert_close(model(images), model(images * 2 + 1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_gradients_with_respect_to_the_image_are_those_of_finite_differences(kind: str) -> None:
    model = random_classifier(SMALL_ONES[kind])
    model.double()
    generator = torch.Generator().manual_seed(0)
    # through the network alone in fp64, since the model's own door makes fp32 of it; noise, since an even background
    # has ties in every max pooling, where there is no derivative
    x, direction = torch.randn((2, 1, 1, 28, 28), dtype=torch.float64, generator=generator)

    def loss(values: Tensor) -> Tensor:
        features = []
        last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
        handle = last.register_forward_hook(lambda module, inputs, output: features.append(output))
        model.logits(values)
        handle.remove()
        return F.cross_entropy(features[0], torch.tensor([3]))

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-7
    measured = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), measured, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", SMALL_ONES)
def test_there_is_a_gradient_at_the_image(kind: str) -> None:
    model = random_classifier(SMALL_ONES[kind])
    x = (bundled_images(1)[:2].float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), torch.tensor([3, 4])), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).double().mean() > 0.5


def test_predictions_do_not_depend_on_the_batch() -> None:
    model, images = random_classifier(FASHION), bundled_images(1)[:16]
    together = model(images)
    torch.testing.assert_close(together[5:6], model(images[5:6]), rtol=1e-4, atol=1e-4)
    assert torch.equal(predict(model, images), together.argmax(1))
    assert predict(model, images[:0]).shape == (0,)


def test_accuracy() -> None:
    model, images = random_classifier(FASHION), bundled_images(1)[:8]
    labels = predict(model, images)
    assert accuracy(model, images, labels) == 1.0
    labels[:2] = (labels[:2] + 1) % 10
    assert accuracy(model, images, labels) == 0.75
    with pytest.raises(ValueError, match=r"expected labels \(8,\), one per image, got \(7,\)"):
        accuracy(model, images, labels[:7])


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 3, 28, 28), ValueError, r"\(N, 1, 28, 28\), got \(1, 3, 28, 28\)"),
        (torch.zeros(1, 28, 28), ValueError, r"got \(1, 28, 28\)"),
        (torch.zeros(1, 1, 28, 28, dtype=torch.int64), TypeError, "int64"),
    ],
)
def test_bad_input(images: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        random_classifier(FASHION)(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": (28, 27)}, "image_size"),
        ({"channels": 2}, "channels"),
        ({"widths": (4, 8)}, "widths"),
        ({"widths": (4, 7, 16)}, "even steps"),
        ({"units": 0}, "units"),
        ({"units": 10**6}, "units"),
        ({"widths": (10**9, 10**9, 10**9)}, "widths"),
        ({"image_size": (1 << 20, 1 << 20)}, "image_size"),
        ({"classes": 1}, "classes"),
        ({"leakiness": 1.0}, "leakiness"),
    ],
)
def test_bad_configuration(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNetConfig(**{"image_size": (28, 28), "channels": 1, "widths": (4, 8, 16), **changes})


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (VGGConfig, {"blocks": ((4, 0),), "hidden": 8}, "blocks"),
        (VGGConfig, {"blocks": (), "hidden": 8}, "blocks"),
        (VGGConfig, {"blocks": ((4, 1),), "hidden": 0}, "hidden"),
        (VGGConfig, {"blocks": ((4, 1),), "hidden": 8, "dropout": 1.0}, "dropout"),
        (WideResNetConfig, {"depth": 27}, "6 n"),
        (WideResNetConfig, {"widen": 0}, "widen"),
        (ResNet18Config, {"classes": True}, "classes"),
        (ResNet18Config, {"classes": 10**9}, "classes"),
        (VGGConfig, {"blocks": ((4, 10**6),), "hidden": 8}, "blocks"),
        (VGGConfig, {"blocks": ((4, 1),), "hidden": 10**9}, "hidden"),
        (WideResNetConfig, {"depth": 6 * 10**6 + 4}, "6 n"),
        (WideResNetConfig, {"widen": 10**9}, "widen"),
    ],
)
def test_bad_configuration_of_the_others(config: type[ClassifierConfig], changes: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        config((28, 28), 1, **changes)
