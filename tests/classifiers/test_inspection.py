"""What is wrong with a classifier is said before it is used: each fault by what was expected, and what came."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.helpers import real_images
from support.own_classifiers import Features, SmallCNN, Wrapped
from torch import Tensor, nn

import pxfast
from pxfast.classifiers import check_classifier, load_classifier


@pytest.fixture(scope="module")
def images() -> Tensor:
    return real_images(1, (8, 8), 16)


def changed(function) -> nn.Module:
    """A small CNN, whose call is ``function`` of it and of the images."""
    return Wrapped(SmallCNN(), function).eval()


def in_place(network: nn.Module, x: Tensor) -> Tensor:
    x -= 0.1
    return network(x)


def channels_last(network: nn.Module, x: Tensor) -> Tensor:
    assert x.shape[3] == 1, f"expected channels last, got {tuple(x.shape)}"
    return network(x.permute(0, 3, 1, 2))


def with_nan(network: nn.Module, x: Tensor) -> Tensor:
    return network(x).masked_fill(torch.arange(len(x))[:, None] == 1, torch.nan)


def through_numpy(network: nn.Module, x: Tensor) -> Tensor:
    return network(torch.from_numpy(np.asarray(x.detach())))


def training_inside() -> nn.Module:
    network = Features().eval()
    network.features[1].train()
    return network


def dropout_inside() -> nn.Module:
    network = Features().eval()
    network.classifier[1].train()
    return network


FAULTS = {
    "training mode": (lambda: SmallCNN(), ValueError, "in eval mode, got one in training mode: call its eval"),
    "a class": (lambda: SmallCNN, TypeError, "got the class SmallCNN itself: pass an instance"),
    "a function": (lambda: lambda x: x, TypeError, "a classifier is an nn.Module .* got function"),
    "softmax": (lambda: changed(lambda f, x: f(x).softmax(1)), ValueError, "expected logits .* got probabilities"),
    "channels last": (
        lambda: changed(channels_last),
        ValueError,
        r"images \(N, C, H, W\), got one of images \(N, H, W",
    ),
    "a tuple": (
        lambda: changed(lambda f, x: (f(x), x)),
        TypeError,
        r"expected logits \(16, classes\) .* got tuple of Tensor \(16, 5\), Tensor \(16, 1, 8, 8\)",
    ),
    "a dict": (
        lambda: changed(lambda f, x: {"logits": f(x)}),
        TypeError,
        "got dict of logits: return the logits alone",
    ),
    "nothing": (lambda: changed(lambda f, x: None), TypeError, "got NoneType"),
    "NaN": (lambda: changed(with_nan), ValueError, "expected finite logits .* NaN or infinity for 1 of 16 images"),
    "maps": (
        lambda: changed(lambda f, x: f(x)[:, :, None, None]),
        ValueError,
        r"got \(16, 5, 1, 1\): flatten it, by flatten\(1\)",
    ),
    "one row for all": (lambda: changed(lambda f, x: f(x)[:1]), ValueError, r"expected logits \(16, .* got \(1, 5\)"),
    "one logit": (lambda: changed(lambda f, x: f(x)[:, :1]), ValueError, r"at least two classes, got \(16, 1\)"),
    "labels": (lambda: changed(lambda f, x: f(x).argmax(1)), TypeError, r"got torch.int64 \(16,\): labels are not"),
    "the images": (lambda: nn.Identity().eval(), ValueError, r"got \(16, 1, 8, 8\)"),
    "random": (
        lambda: changed(lambda f, x: f(x + 0.1 * torch.rand_like(x))),
        ValueError,
        "not random, got logits that",
    ),
    "dropout inside": (dropout_inside, ValueError, r"not random.* \(in training mode inside: classifier.1; call eval"),
    "batch normalisation inside": (training_inside, ValueError, "judges each image by itself.*inside: features.1;"),
    "no gradient": (lambda: changed(lambda f, x: f(x).detach()), ValueError, "have a gradient .* got none: no_grad"),
    "NumPy inside": (lambda: changed(through_numpy), ValueError, "have a gradient .* got none"),
    "rounding inside": (
        lambda: changed(lambda f, x: f((4 * x).round() / 4)),
        ValueError,
        "got zero for 16 of 16 images",
    ),
    "changes its images": (
        lambda: changed(in_place),
        ValueError,
        "leaves its images as they are, got one that changes",
    ),
    "other images": (lambda: nn.Conv2d(3, 5, 8).eval(), ValueError, r"failed with float32 images of shape \(16, 1, 8"),
    "no weights": (lambda: SmallCNN().to("meta").eval(), ValueError, "got one on the device 'meta'"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(images, fault):
    make, error, words = FAULTS[fault]
    with pytest.raises(error, match=words):
        check_classifier(make(), images)


@pytest.mark.parametrize("make", [SmallCNN, Features])
def test_right_classifiers_pass_and_stay_as_they_are(images, make):
    network = make().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = images.clone()
    with torch.no_grad():
        expected = network(images.float() / 255)
    torch.testing.assert_close(check_classifier(network, images, classes=5), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(images, given)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_classifiers_of_other_types_get_images_of_theirs(images, dtype, tmp_path):
    network = SmallCNN().eval().to(dtype)
    assert check_classifier(network, images).dtype == dtype
    given = (images, torch.zeros(16, dtype=torch.int64))
    table = pxfast.benchmark(network, given, out=tmp_path, defences=["none"], attacks=["fgsm"], progress=False)
    assert len(table.rows) == 1


def test_those_without_gradients_pass_where_no_attack_needs_them(images):
    check_classifier(changed(lambda f, x: f(x).detach()), images, gradients=False)
    check_classifier(changed(lambda f, x: f(x).log_softmax(1)), images)  # logits as good as any
    check_classifier(changed(lambda f, x: f(x.bfloat16().float())), images)


def test_another_number_of_classes(images):
    with pytest.raises(ValueError, match="expected logits of 10 classes from the classifier, got 5"):
        check_classifier(SmallCNN().eval(), images, classes=10)
    with pytest.raises(ValueError, match=r"expected labels in 0..4, the classifier's 5 classes, got 7"):
        check_classifier(SmallCNN().eval(), images, [7] * 16)
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, C, H, W\), at least 2, got torch.uint8 \(1, "):
        check_classifier(SmallCNN().eval(), images[:1])


def test_two_devices_are_named():
    network = SmallCNN().eval()
    network.output.to("meta")
    with pytest.raises(ValueError, match=r"all on one device, got first.weight on cpu, output.weight on meta"):
        check_classifier(network, real_images(1, (8, 8), 4))


def test_images_in_0_to_255_are_noticed():
    """The labels tell: a classifier of grey values gets most images wrong when they come in [0, 1]."""
    images = real_images(1, (28, 28), 16)
    network = load_classifier("fashion-mnist")
    with torch.no_grad():
        labels = network(images).argmax(1)
    right = Wrapped(network, lambda f, x: f(x)).eval()
    check_classifier(right, images, labels)
    wrong = Wrapped(network, lambda f, x: f((x / 255).clamp(0, 1)) * (x.max() > 2) + torch.arange(10.0)).eval()
    with pytest.raises(
        ValueError, match=r"images in 0..255: of 16 images it gets \d+ right in \[0, 1\], and 16 in 0..255"
    ):
        check_classifier(wrong, images, labels)


def test_errors_that_a_classifier_raises_are_told(images):
    def broken(network: nn.Module, x: Tensor) -> Tensor:
        raise KeyError("embedding")

    with pytest.raises(ValueError, match=r"this one failed with float32 images of shape .*KeyError: 'embedding'"):
        check_classifier(changed(broken), images)
