"""What an attack spends on every image, and what it may spend."""

from __future__ import annotations

import torch
from torch import Tensor


class Meter:
    """The queries and gradients of a block of N images, and the seeds of their random numbers.

    A *query* is an image once through the purifier. A *gradient* is an image once backwards through the classifier,
    the whole pipeline or the density model.

    queries, gradients: int64 (N,), spent so far. seeds: an integer in 0..2^63 - 1 for each image. progress: whether
    the attack shows a bar of its steps. max_queries, max_gradients: what an image may cost, at least 0; None: no limit.
    """

    def __init__(
        self,
        seeds: list[int],
        *,
        max_queries: int | None = None,
        max_gradients: int | None = None,
        progress: bool = False,
    ) -> None:
        self.seeds = seeds
        self.max_queries = max_queries
        self.max_gradients = max_gradients
        self.queries: Tensor = torch.zeros(len(seeds), dtype=torch.int64)
        self.gradients: Tensor = torch.zeros(len(seeds), dtype=torch.int64)
        self.progress = progress

    def affords(self, chosen: Tensor, queries: int, gradients: int) -> bool:
        """Whether each of the chosen images, int64 indices, could spend so much more."""
        after = (self.queries[chosen.cpu()].max() + queries, self.gradients[chosen.cpu()].max() + gradients)
        limits = (self.max_queries, self.max_gradients)
        return all(limit is None or total <= limit for total, limit in zip(after, limits, strict=True))

    def spend(self, chosen: Tensor, queries: int, gradients: int) -> None:
        """Count so much for each of the chosen images, int64 indices."""
        self.queries[chosen.cpu()] += queries
        self.gradients[chosen.cpu()] += gradients
