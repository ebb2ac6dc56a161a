"""Votes of a classifier over several guesses, or noisy copies, of one image."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ..classifiers.contract import checked_logits
from ..defences.defended import averaged
from ..tensors.batches import FIXED_BATCH, in_fixed_batches
from ..tensors.floating import in_type_of

EXPECTED = "a certificate needs a classifier whose logits of an image depend on no other image of the batch"


_tried: ContextVar[list[tuple[nn.Module, int]] | None] = ContextVar("_tried", default=None)


@contextlib.contextmanager
def each_tried_once() -> Iterator[None]:
    """Within, :func:`check_alone` tries a classifier once: calls that certify a few images each have the same one."""
    before = _tried.set([])
    try:
        yield
    finally:
        _tried.reset(before)


def check_alone(classifier: nn.Module, image: Tensor) -> int:
    """How many classes it has. ValueError where an image's logits depend on the others in its batch: one vote could
    then change many.

    image: floating (1, C, H, W). Layers that normalise by their batch in eval mode are named; any other dependence is
    looked for with black, white and inverted companions.
    """
    tried = _tried.get()
    for known, classes in tried or ():
        if known is classifier:
            return classes
    for name, part in classifier.named_modules():
        if isinstance(part, nn.modules.batchnorm._NormBase) and not part.training and part.running_mean is None:
            per_image = isinstance(part, nn.modules.instancenorm._InstanceNorm)
            if not per_image:
                raise ValueError(f"{EXPECTED}, and {name or 'it'} normalises by its batch (track_running_stats=False)")
    found = []
    for others in (image, torch.zeros_like(image), torch.ones_like(image), 1.0 - image):
        batch = torch.cat([image, others.expand(FIXED_BATCH - 1, -1, -1, -1)])
        found.append(checked_logits(classifier(in_type_of(classifier, batch.clone())), FIXED_BATCH)[:1])
    if not all(torch.equal(each, found[0]) for each in found):
        raise ValueError(f"{EXPECTED}, and those of the first image do")
    classes = found[0].shape[1]
    if tried is not None:
        tried.append((classifier, classes))
    return classes


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
