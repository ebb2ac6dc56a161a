"""Batches of one size, for results that do not depend on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..base.forks import ThreadLock

FIXED_BATCH = 32  # images that a network always sees at once
USUAL_PIXELS = 64 * 64  # of an image, up to which as many are taken at once as of smaller ones


def fewer_if_large(count: int, images: Tensor) -> int:
    """How many images (N, C, H, W) to take at once: ``count``, and fewer of more than 64x64 pixels, at least one.

    They then take no more memory than ``count`` of 64x64.
    """
    H, W = images.shape[2:]
    return max(1, min(count, count * USUAL_PIXELS // (H * W)))


def in_fixed_batches(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    size: int = FIXED_BATCH,
    enough: Callable[[int], int] | None = None,
) -> Tensor:
    """``function`` of N > 0 images, always called with ``size`` of them, the last ones copies of another.

    Libraries choose their convolution by the batch's size, and with it the rounding: without this an image's result
    would depend on how many others are computed beside it.

    enough: to how many a last batch of so many images has to be filled up, where fewer than ``size`` have been found to
    give the same bits (:class:`EqualBatches`).
    """
    results = []
    for part in images.split(size):
        missing = (size if enough is None or len(part) == size else enough(len(part))) - len(part)
        filled = torch.cat((part, part[:1].expand(missing, -1, -1, -1))) if missing else part
        results.append(function(filled)[: len(part)])
    return torch.cat(results)


class EqualBatches:
    """Which small batches a network gives the bits of a full one: found by trial, once for each way to compute.

    The library's choice depends on shapes, types, the weights' layout and the number of threads. So one comparison of
    as many random images as a full batch has says how all images of these shapes are rounded: after a network's layers
    another order of summation shows in some of the thousands of values. A batch that differs is filled up.
    Safe in several threads.
    """

    def __init__(self) -> None:
        self._found: weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[int, bool]]] = weakref.WeakKeyDictionary()
        self._lock = ThreadLock()

    @torch.no_grad()
    def enough(self, network: Callable[[Tensor], Tensor], count: int, size: int, like: Tensor) -> int:
        """The least batch of at least ``count`` images whose bits are those of ``size`` of them.

        network: a module from images to a tensor of one row an image. like: images (N, C, H, W) in whose shape, type
        and place it is called.
        """
        assert isinstance(network, nn.Module)
        weight = next(network.parameters())
        key = (size, like.shape[1:], like.dtype, like.device, weight.stride(), torch.get_num_threads())
        with self._lock:
            equal = self._found.setdefault(network, {}).setdefault(key, {size: True})
            untried = [batch for batch in range(count, size) if batch not in equal]
            if untried and not any(equal.get(batch) for batch in range(count, untried[0])):
                generator = torch.Generator().manual_seed(0)
                trial = torch.rand((size, *like.shape[1:]), generator=generator, dtype=torch.float64).to(like)
                whole = network(trial)
                for batch in untried:
                    equal[batch] = torch.equal(network(trial[:batch]), whole[:batch])
                    if equal[batch]:
                        break
            return next(batch for batch in range(count, size + 1) if equal.get(batch))
