"""Labels and accuracy of any classifier over many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .contract import Labels, checked_logits, class_labels

BATCH = 250


@torch.no_grad()
def predict(classifier: nn.Module, images: Tensor) -> Tensor:
    """The classifier's labels (N,) int64 of images (N, C, H, W), computed in batches.

    classifier: gives logits (N, classes), and takes the images as they are given here.
    """
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.int64, device=images.device)
    return torch.cat([checked_logits(classifier(part), len(part)).argmax(1) for part in images.split(BATCH)])


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Labels) -> float:
    """Fraction in [0, 1] of images (N, C, H, W), N > 0, that the classifier gives their label.

    labels: integers (N,), of the classifier's classes. TypeError or ValueError for others, for no images, and for
    logits that are no logits (:mod:`pxfast.classifiers.contract`).
    """
    if len(images) == 0:
        raise ValueError("expected at least one image, got none")
    logits = checked_logits(classifier(images[:1]), 1)
    known = class_labels(labels, len(images), classes=logits.shape[1], device=logits.device)
    return float((predict(classifier, images) == known).double().mean())
