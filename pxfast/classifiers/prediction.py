"""Labels and accuracy of any classifier over many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

BATCH = 250


@torch.no_grad()
def predict(classifier: nn.Module, images: Tensor) -> Tensor:
    """The classifier's labels (N,) int64 of images (N, C, H, W), computed in batches.

    classifier: gives logits (N, classes), and takes the images as they are given here.
    """
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.int64, device=images.device)
    return torch.cat([classifier(part).argmax(1) for part in images.split(BATCH)])


def accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction in [0, 1] of images (N, C, H, W), N > 0, that the classifier gives their label (N,)."""
    if len(images) == 0 or len(images) != len(labels):
        raise ValueError(f"expected as many labels as images and at least one, got {len(images)} and {len(labels)}")
    return float((predict(classifier, images) == labels).double().mean())
