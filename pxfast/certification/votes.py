"""Votes of a classifier over several guesses, or noisy copies, of one image."""

from __future__ import annotations

from torch import Tensor, nn

from ..classifiers.contract import checked_logits
from ..defences.defended import averaged
from ..tensors.batches import in_fixed_batches
from ..tensors.floating import in_type_of


def votes(classifier: nn.Module, images: Tensor, views: str) -> Tensor:
    """How many of the images (M, C, H, W) the classifier gives to each class: int64 (classes,), on the CPU.

    views: 'one', or 'flip': the probabilities of an image and of its mirror image are averaged.
    """

    def logits(some: Tensor) -> Tensor:
        typed = in_type_of(classifier, some)
        seen = [typed.clone()] if views == "one" else [typed.clone(), typed.flip(3)]
        return averaged([checked_logits(classifier(each), len(each)) for each in seen])

    found = in_fixed_batches(logits, images)
    return found.argmax(dim=1).bincount(minlength=found.shape[1]).cpu()
