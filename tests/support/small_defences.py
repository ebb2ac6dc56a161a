"""Purifiers that cost nothing, over which the attacks that know the defence are tested."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pxfast.tensors.seeds import image_seeds, standard_normal
from pxfast.tensors.straight_through import with_backward


class Halves(nn.Module):
    """Deterministic: every second column takes its left neighbour's value. Straight-through, with a score."""

    def forward(self, images: Tensor) -> Tensor:
        purified = images.detach().clone()
        purified[..., 1::2] = purified[..., 0::2]
        return with_backward(images, purified, "straight-through")

    def log_prob_gradient(self, images: Tensor) -> Tensor:
        return self(images).detach() - images.detach()


class Noisy(nn.Module):
    """Stochastic: noise of a known seed, and the picture a little paler; its own gradient is 0.9 times the given one.

    calls: what ``draw`` was asked and what it gave.
    """

    stochastic = True

    def __init__(self, sigma: float = 0.1, runs: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.sigma, self.runs, self.seed = sigma, runs, seed
        self.calls: list[tuple[Tensor, list[int], Tensor]] = []

    def differentiate(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        return (0.9 * images + self.sigma * standard_normal(seeds, images)).clamp(0, 1)

    def draw(self, images: Tensor, seeds: Sequence[int]) -> Tensor:
        result = with_backward(images, self.differentiate(images.detach(), seeds), "straight-through")
        self.calls.append((images.detach(), list(seeds), result.detach()))
        return result

    def draws(self, count: int) -> list[tuple[Tensor, list[int], Tensor]]:
        """The calls as draws of ``count`` images each, in their order: a batch holds the last one first."""
        found = []
        for asked, seeds, result in self.calls:
            for first in reversed(range(0, len(asked), count)):
                rows = slice(first, first + count)
                found.append((asked[rows], seeds[rows], result[rows]))
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.draw(images, image_seeds(images, self.seed))

    def log_prob_gradient(self, images: Tensor) -> Tensor:
        return 0.5 - images.detach()

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, runs={self.runs}, seed={self.seed}"


def linear_gradient(weight: Tensor, bias: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the cross-entropy of the logits W x + b, by its formula: W' (softmax - onehot)."""
    logits = x.flatten(1) @ weight.T + bias
    difference = logits.softmax(1) - torch.nn.functional.one_hot(labels, len(bias))
    return (difference @ weight).reshape(x.shape)
