"""Labels and accuracy of any classifier over many images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..base.checks import check_instance
from ..tensors.floating import fp32_convolutions
from .contract import Labels, checked_logits, class_labels

BATCH = 250


def check_network_input(classifier: nn.Module, images: Tensor) -> None:
    """TypeError or ValueError unless these are a module and a tensor (N, C, H, W), uint8 or floating."""
    check_instance("classifier", classifier, nn.Module)
    check_instance("images", images, Tensor)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"expected uint8 images, or floating ones in [0, 1], got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")


@torch.no_grad()
def predict(classifier: nn.Module, images: Tensor) -> Tensor:
    """The classifier's labels (N,) int64 of images (N, C, H, W), computed in batches.

    classifier: gives logits (N, classes), and takes the images as they are given here.
    """
    check_network_input(classifier, images)
    if len(images) == 0:
        return torch.zeros(0, dtype=torch.int64, device=images.device)
    return torch.cat([checked_logits(classifier(part), len(part)).argmax(1) for part in images.split(BATCH)])


@torch.no_grad()
def accuracy(classifier: nn.Module, images: Tensor, labels: Labels) -> float:
    """Fraction in [0, 1] of images (N, C, H, W), N > 0, that the classifier gives their label.

    labels: integers (N,), of the classifier's classes. TypeError or ValueError for others, for no images, and for
    logits that are no logits (:mod:`pxfast.classifiers.contract`). fp32 is what it says, on a GPU too.
    """
    check_network_input(classifier, images)
    if len(images) == 0:
        raise ValueError("expected at least one image, got none")
    with fp32_convolutions():
        logits = checked_logits(classifier(images[:1]), 1)
        known = class_labels(labels, len(images), classes=logits.shape[1], device=logits.device)
        return float((predict(classifier, images) == known).double().mean())
