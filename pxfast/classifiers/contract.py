"""What a classifier has to give, and what labels may be: one check, wherever either comes in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Labels = Tensor | np.ndarray | Sequence[int]  # integers (N,), one per image


def checked_logits(logits: object, count: int) -> Tensor:
    """The logits themselves. TypeError or ValueError unless floating (count, classes), two classes or more, finite.

    What does not pass would make an attack report robustness: NaN is no class, and one class is never wrong.
    """
    expected = f"expected logits ({count}, classes) from the classifier, floating point, of at least two classes"
    if not isinstance(logits, Tensor):
        raise TypeError(f"{expected}, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"{expected}, got {logits.dtype}")
    if logits.dim() != 2 or logits.shape[0] != count or logits.shape[1] < 2:
        raise ValueError(f"{expected}, got {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        wrong = int((~torch.isfinite(logits)).any(dim=1).sum())
        raise ValueError(
            f"expected finite logits from the classifier, got NaN or infinity for {wrong} of {count} images"
        )
    return logits


def class_labels(
    labels: Labels,
    count: int,
    *,
    classes: int | None = None,
    device: torch.device | str = "cpu",
    what: str = "labels",
) -> Tensor:
    """Labels as int64 (count,) on a device.

    labels: a tensor, an array or a sequence of integers (count,). classes: how many there are, if that is known. what:
    their name in messages. TypeError unless integers; ValueError for another shape, and for one outside 0..classes - 1.
    """
    try:
        found = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    except (TypeError, ValueError) as error:
        raise TypeError(f"expected integer {what} ({count},), one per image, got {type(labels).__name__}") from error
    if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
        raise TypeError(f"expected integer {what}, got {found.dtype}")
    if found.shape != (count,):
        raise ValueError(f"expected {what} ({count},), one per image, got {tuple(found.shape)}")
    found = found.detach().to(device, torch.int64)
    if found.is_inference():  # autograd could not keep it
        found = found.clone()
    if classes is not None and count and not (int(found.min()) >= 0 and int(found.max()) < classes):
        wrong = found[(found < 0) | (found >= classes)]
        raise ValueError(
            f"expected {what} in 0..{classes - 1}, the classifier's {classes} classes, got {int(wrong[0])}"
        )
    return found
