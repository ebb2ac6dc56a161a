"""FGSM: inside the ball, on the grid, independent of the batch, and an attack."""

import pytest
import torch
import torch.nn.functional as F
from support.helpers import bundled_images

from pxfast.attacks import FGSM
from pxfast.classifiers import ResNet, accuracy, load_classifier, predict
from pxfast.cli.demonstration import load_demo_images


@pytest.fixture(scope="module")
def classifier() -> ResNet:
    return load_classifier("fashion-mnist")


@pytest.mark.parametrize("eps", [0, 1, 8, 25, 255])
def test_moves_by_exactly_eps_up_to_the_ends_of_the_grid(classifier: ResNet, eps: int) -> None:
    images = bundled_images(1)[:8]
    before = images.clone()
    attacked = FGSM()(classifier, images, None, eps)
    assert torch.equal(images, before)
    assert attacked.dtype == torch.uint8
    assert attacked.shape == images.shape
    low, high = (images.int() - eps).clamp(min=0), (images.int() + eps).clamp(max=255)
    assert ((attacked == low) | (attacked == high) | (attacked == images)).all()
    if eps:
        assert (attacked != images).any(dim=(1, 2, 3)).all()


def test_follows_the_gradient_of_the_cross_entropy(classifier: ResNet) -> None:
    """Against the definition, one image at a time; signs of gradients near zero may differ by rounding."""
    images = bundled_images(1)[:6]
    labels = torch.tensor([3, 1, 4, 1, 5, 9])
    attacked = FGSM(label_rule="given")(classifier, images, labels, 8)
    for image, label, result in zip(images, labels, attacked, strict=True):
        x = (image[None].double() / 255).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(x), label[None]), x)
        expected = (image.int() + 8 * gradient[0].sign().int()).clamp(0, 255)
        clear = gradient[0].abs() > 1e-3 * gradient.abs().max()
        assert clear.double().mean() > 0.9
        assert torch.equal(result.int()[clear], expected[clear])


def test_is_deterministic_and_independent_of_the_batch(classifier: ResNet) -> None:
    images = bundled_images(1)[:40]  # more than one chunk, the last one not full
    attacked = FGSM()(classifier, images, None, 8)
    assert torch.equal(FGSM()(classifier, images, None, 8), attacked)
    for i in (7, 39):
        assert torch.equal(FGSM()(classifier, images[i : i + 1], None, 8)[0], attacked[i])
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(FGSM()(classifier, images[order], None, 8), attacked[order])
    assert torch.equal(FGSM()(classifier, images.contiguous(memory_format=torch.channels_last), None, 8), attacked)


def test_leads_away_from_the_predicted_labels(classifier: ResNet) -> None:
    images = bundled_images(1)[:16]
    predicted = predict(classifier, images)
    by_prediction = FGSM()(classifier, images, None, 8)
    assert torch.equal(FGSM(label_rule="given")(classifier, images, predicted, 8), by_prediction)
    others = (predicted + 1) % 10
    assert torch.equal(FGSM()(classifier, images, others, 8), by_prediction)
    assert not torch.equal(FGSM(label_rule="given")(classifier, images, others, 8), by_prediction)


def test_leaves_no_gradients_behind_and_works_under_no_grad(classifier: ResNet) -> None:
    images = bundled_images(1)[:2]
    with torch.no_grad():
        attacked = FGSM()(classifier, images, None, 8)
    assert torch.equal(attacked, FGSM()(classifier, images, None, 8))
    assert not attacked.requires_grad
    assert all(parameter.grad is None for parameter in classifier.parameters())


def test_lowers_the_accuracy_on_the_demo_images(classifier: ResNet) -> None:
    demo = load_demo_images()
    assert accuracy(classifier, demo.clean, demo.labels) == 1.0
    assert accuracy(classifier, FGSM()(classifier, demo.clean, None, 25), demo.labels) <= 0.6
    attacked = FGSM(label_rule="given")(classifier, demo.clean, demo.labels, 8)
    by_label = accuracy(classifier, attacked, demo.labels)
    assert by_label < 1.0


def test_demo_images_are_what_the_attack_gives(classifier: ResNet) -> None:
    """Another processor's rounding may turn a few gradients near zero."""
    demo = load_demo_images()
    again = FGSM()(classifier, demo.clean, None, demo.attack_eps)
    assert (again == demo.attacked).double().mean() > 0.99
    assert len(set(demo.labels[:10].tolist())) == 10
    assert len(demo.labels) == 16


def test_empty_batch(classifier: ResNet) -> None:
    assert FGSM()(classifier, bundled_images(1)[:0], None, 8).shape == (0, 1, 28, 28)


def test_bad_input(classifier: ResNet) -> None:
    images = bundled_images(1)[:2]
    with pytest.raises(ValueError, match=r"in \[0, 1\], got values from 0 to 255; .* uint8"):
        FGSM()(classifier, images.float(), None, 8)
    with pytest.raises(ValueError, match=r"\(1, 28, 28\)"):
        FGSM()(classifier, images[0], None, 8)
    with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
        FGSM()(classifier, images, torch.zeros(3, dtype=torch.int64), 8)
    with pytest.raises(ValueError, match="256"):
        FGSM()(classifier, images, None, 256)
    with pytest.raises(TypeError, match=r"8\.0"):
        FGSM()(classifier, images, None, 8.0)
    with pytest.raises(ValueError, match="eval"):
        FGSM()(ResNet(classifier.config), images, None, 8)
