"""The classifier of the paper's appendix A."""

import pytest
import torch
from torch import nn

import pxfast
from pxfast.classifiers import RandomAboveThreshold
from pxfast.classifiers.random_above_threshold import random_label


class Counted(nn.Module):
    """Logits that tell the images apart: the values of the first 10 sub-pixels."""

    def forward(self, images):
        return images.flatten(1)[:, :10].float()


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def threshold(tiny_model, images):
    return float(pxfast.bits_per_dim(images, model=tiny_model).median())


def test_likely_images_keep_their_logits_and_the_others_get_a_label(tiny_model, images, threshold):
    wrapped = RandomAboveThreshold(Counted(), threshold=threshold, model=tiny_model)
    unlikely = pxfast.bits_per_dim(images, model=tiny_model) >= threshold
    assert 0 < unlikely.sum() < len(images)
    logits = wrapped(images)
    assert torch.equal(logits[~unlikely], Counted()(images[~unlikely]))
    assert torch.equal(logits[unlikely].sum(1), torch.ones(int(unlikely.sum())))
    expected = [random_label(image, 10, 0) for image in images[unlikely]]
    assert logits[unlikely].argmax(1).tolist() == expected
    assert torch.equal(wrapped(images.float() / 255)[unlikely], logits[unlikely]), "floats are rounded to the grid"
    with torch.device("meta"):  # wherever new tensors are by default
        assert torch.equal(wrapped(images), logits)


def test_a_label_hangs_on_seed_and_image_alone(tiny_model, images):
    """The whole batch, one after the other, and backwards; another seed gives other labels."""
    wrapped = RandomAboveThreshold(Counted(), threshold=0.0, model=tiny_model)
    labels = wrapped(images).argmax(1)
    assert torch.equal(torch.cat([wrapped(image[None]) for image in images]).argmax(1), labels)
    assert torch.equal(wrapped(images.flip(0)).argmax(1).flip(0), labels)
    other = RandomAboveThreshold(Counted(), threshold=0.0, model=tiny_model, seed=1)(images).argmax(1)
    assert not torch.equal(other, labels)
    assert torch.equal(torch.tensor([random_label(image, 10, 0) for image in images]), labels)


def test_labels_are_uniform():
    images = torch.randint(0, 256, (5000, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    counts = torch.bincount(torch.tensor([random_label(image, 10, 0) for image in images]), minlength=10)
    assert float(((counts - 500.0) ** 2 / 500).sum()) < 27.9  # chi-square with 9 degrees of freedom, 0.999


def test_is_a_module_without_the_density_model(tiny_model, images, threshold):
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    wrapped = RandomAboveThreshold(classifier, threshold=threshold, model=tiny_model)
    assert len(list(wrapped.parameters())) == 2
    x = (images.float() / 255).requires_grad_()
    wrapped(x).sum().backward()
    unlikely = pxfast.bits_per_dim(images, model=tiny_model) >= threshold
    moved = x.grad.flatten(1).abs().sum(1) > 0
    assert torch.equal(moved, ~unlikely), "a random label has no gradient"
    with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\), got \(1, 8, 8\)"):
        wrapped(x[0])
    assert f"threshold={threshold}" in repr(wrapped)
