"""The fast gradient sign method (Goodfellow et al. 2015), on the integer grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..purify import check_eps

CHUNK = 32


def fgsm(classifier: nn.Module, images: Tensor, labels: Tensor | None, eps: int) -> Tensor:
    """images + eps * sign(gradient of the cross-entropy with respect to the images), clipped to 0..255.

    classifier: takes floating images in [0, 1] and gives logits (N, classes); must be in eval mode.
    images: uint8 (N, C, H, W). labels: integers (N,) that the attack leads away from; None: the classifier's own
    prediction, as PixelDefend's authors have it (it does not leak the true label). eps: 0..255, in grey levels.
    Returns uint8 images of the same shape, within ``eps`` of the given ones. Where the gradient is exactly zero, the
    sub-pixel stays as it is. An image's result does not depend on the others in the batch.
    Raises TypeError or ValueError for other dtypes, shapes or ranges.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"expected uint8 images, got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"expected images (N, C, H, W), got {tuple(images.shape)}")
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"expected labels ({len(images)},), one per image, got {tuple(labels.shape)}")
    eps = check_eps(eps)
    if classifier.training:
        raise ValueError("the classifier must be in eval mode; in training mode each image depends on its batch")
    attacked = [
        _fgsm_chunk(classifier, images[i : i + CHUNK], None if labels is None else labels[i : i + CHUNK], eps)
        for i in range(0, len(images), CHUNK)
    ]
    return torch.cat(attacked) if attacked else images.clone()


def _fgsm_chunk(classifier: nn.Module, images: Tensor, labels: Tensor | None, eps: int) -> Tensor:
    # Filled up to CHUNK: libraries choose their convolution by batch size, and its rounding can turn a tiny gradient.
    count = len(images)
    filled = torch.cat((images, images[:1].expand(CHUNK - count, -1, -1, -1)))
    with torch.enable_grad():
        x = (filled.float() / 255.0).requires_grad_()
        logits = classifier(x)
        if labels is None:
            target = logits.detach().argmax(1)
        else:
            target = torch.cat((labels, labels[:1].expand(CHUNK - count))).long()
        # the sum, not the mean: an image's gradient must not depend on the size of the batch
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, target, reduction="sum"), x)
    moved = filled.to(torch.int16) + eps * gradient.sign().to(torch.int16)
    return moved[:count].clamp(0, 255).to(torch.uint8)
