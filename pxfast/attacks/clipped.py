"""Attacks whose search knows no eps: one search serves every eps."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..base.checks import check_eps, check_instance, check_progress
from ..base.progress import reporting
from ..classifiers.contract import Labels
from ..tensors.ambient import in_plain_torch
from .attack import Attack, attackable, blocks, nothing, prepared, settled, to_float
from .gradients import predicted
from .result import AttackResult, join


class ClippedAttack(Attack):
    """An attack that looks for its images without a bound, and whose finds eps only clips.

    So :meth:`unclipped` with :meth:`clip` gives the results for several eps at the price of one. A subclass has
    :meth:`find` in place of ``perturb``.
    """

    @abc.abstractmethod
    def find(self, classifier: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        """The search itself, on floats: images of x's shape, type and device, as far from x as it takes.

        classifier: as :meth:`run` takes it. x: (N, C, H, W) in [0, 1]. labels: int64 (N,).
        """

    def perturb(self, classifier: nn.Module, x: Tensor, labels: Tensor, eps: float = 1.0, *, seed: int = 0) -> Tensor:
        return x + (self.find(classifier, x, labels) - x).clamp(-eps, eps)

    @in_plain_torch
    @torch.no_grad()
    def unclipped(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Labels | None,
        *,
        clip: bool = False,
        progress: bool | Callable[[int], None] = False,
    ) -> Tensor:
        """What the attack finds before eps clips it: fp32 (N, C, H, W) in [0, 1], for :meth:`clip`.

        The arguments and errors are those of :meth:`run`.
        """
        self.check_installed()
        check_progress(progress)
        grid, _ = attackable(classifier, images, clip)
        fixed, known, _ = prepared(classifier, grid, labels, None, self.batch)

        found = [torch.zeros(0, *grid.shape[1:], device=grid.device)]
        with reporting(len(grid), progress) as report:
            for places in blocks(len(grid), self.block):
                x = to_float(grid[places])
                given = predicted(fixed, x) if known is None else known[places]
                found.append(self.find(fixed, x, given).detach().float())
                report(places.stop)
        return torch.cat(found)

    @in_plain_torch
    @torch.no_grad()
    def clip(
        self,
        classifier: nn.Module,
        images: Tensor,
        labels: Labels | None,
        found: Tensor,
        eps: int,
        *,
        clip: bool = False,
    ) -> AttackResult:
        """What :meth:`run` gives with this eps, from what :meth:`unclipped` found for the same images and labels.

        found: fp32 of the images' shape. Raises what :meth:`run` raises, and ValueError for another shape.
        """
        bound = check_eps(eps)
        grid, form = attackable(classifier, images, clip)
        fixed, known, _ = prepared(classifier, grid, labels, None, self.batch)
        check_instance("found", found, Tensor)
        if found.shape != grid.shape or not found.is_floating_point():
            raise ValueError(f"expected floating images {tuple(grid.shape)}, got {found.dtype} {tuple(found.shape)}")
        pieces = [nothing(grid)]
        for places in blocks(len(grid), self.block):
            x = to_float(grid[places])
            prediction = predicted(fixed, x)
            given = prediction if known is None else known[places]
            moved = x + (found[places] - x).clamp(-bound / 255.0, bound / 255.0)
            left = self._left(fixed, x)
            pieces.append(settled(fixed, grid[places], x, moved, given, prediction != given, bound, left))
        result = join(pieces)
        return dataclasses.replace(result, images=form.images(result.images))
