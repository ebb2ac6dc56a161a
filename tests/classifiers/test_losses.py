"""Losses of classifiers are the literal ones."""

import pytest
import torch
import torch.nn.functional as F

from pxfast.classifiers.adversarial import ADVERSARIAL_WEIGHT
from pxfast.classifiers.losses import consistent_cross_entropy, mixed_cross_entropy, smoothed_cross_entropy


def test_weights_of_clean_and_adversarial_losses() -> None:
    """As in the authors' code: the mean over the batch of 2/1.3 times the clean and 0.6/1.3 times the other losses."""
    logits, labels = torch.randn(8, 10), torch.arange(8)
    losses = F.cross_entropy(logits, labels, reduction="none")
    expected = torch.cat((2.0 / 1.3 * losses[:4], 0.6 / 1.3 * losses[4:])).mean()
    torch.testing.assert_close(mixed_cross_entropy(logits, labels, clean=4), expected)
    assert ADVERSARIAL_WEIGHT == 0.3


@pytest.mark.parametrize("classes", [2, 10])
def test_smoothed_loss_is_the_literal_one(classes: int) -> None:
    logits, labels, smoothing = torch.randn(6, classes), torch.arange(6) % classes, 0.1
    targets = torch.full((6, classes), smoothing / (classes - 1))
    targets[torch.arange(6), labels] = 1 - smoothing
    literal = -(targets * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, smoothing), literal)
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.0), F.cross_entropy(logits, labels))
    most = (classes - 1) / classes
    smoothed_cross_entropy(logits, labels, most)
    with pytest.raises(ValueError, match=rf"smoothing of at most {most:g} for {classes} classes, got 0.99"):
        smoothed_cross_entropy(logits, labels, 0.99)


def test_consistency_loss_is_the_literal_one() -> None:
    logits, labels = torch.randn(8, 5), torch.tensor([0, 3, 4, 1]).repeat(2)
    pairs = logits.softmax(1).reshape(2, 4, 5)
    mean = pairs.mean(0)
    divergence = sum((mean * (mean / each).log()).sum(1) for each in pairs) / 2
    literal = F.cross_entropy(logits, labels) + (3.0 * divergence - 0.5 * (mean * mean.log()).sum(1)).mean()
    torch.testing.assert_close(consistent_cross_entropy(logits, labels, 3.0), literal)
    alike = logits[:4].repeat(2, 1)
    torch.testing.assert_close(
        consistent_cross_entropy(alike, labels, 3.0), consistent_cross_entropy(alike, labels, 0.0)
    )
    certain = torch.tensor([[800.0, 0.0], [0.0, 0.0]], requires_grad=True)
    consistent_cross_entropy(certain, torch.tensor([0, 0]), 1.0).backward()
    assert certain.grad is not None
    assert certain.grad.isfinite().all()
