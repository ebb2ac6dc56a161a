"""BIM through PixelDefend unrolled and relaxed: an attack that knows how the purifier decodes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..base.checks import check_number, check_optional_count
from ..pixeldefend.purify import Purifier
from ..pixeldefend.relaxed import RelaxedPurifier
from .climb import Ascent
from .defence_aware import finished
from .gradients import cross_entropy_gradient
from .grid_ascent import GridAscent, names, target_of
from .sign_steps import bim_steps


def the_purifier(name: str, defences: Sequence[nn.Module]) -> Purifier:
    """The only defence, which is PixelDefend. ValueError, naming the attack, for others."""
    if len(defences) != 1 or not isinstance(defences[0], Purifier):
        raise ValueError(f"{name} needs a pxfast.Purifier as the only defence, got {names(defences) or 'none'}")
    return defences[0]


class UnrolledBIM(GridAscent):
    """BIM on PixelDefend unrolled from end to end, its relaxation standing in for it; for small images, since every
    sub-pixel is a pass of the network that the gradient goes through.

    It attacks a :class:`pxfast.defences.Defended` whose only defence is a :class:`pxfast.Purifier` without an adaptive
    rule; ValueError for another classifier.

    steps: how many, at least 0; None: floor(min(eps + 4, 1.25 eps)). step: their size in grid levels, an integer of at
    least 1. temperature: of the relaxation, above 0. max_queries, max_gradients: what an image may cost of each, at
    least 0; None: no limit. TypeError or ValueError for others.

    Source: Song et al. 2018 (PixelDefend), section 4.4.
    """

    name = "unrolled-bim"
    knows_defences = True
    source = (
        "Song et al. 2018, section 4.4: BIM on PixelDefend unrolled end to end, with RelaxedPurifier in its place; "
        "for small images, since every sub-pixel is a pass of the network that the gradient goes through"
    )

    def __init__(
        self,
        *,
        steps: int | None = None,
        step: int = 1,
        temperature: float = 1.0,
        max_queries: int | None = None,
        max_gradients: int | None = None,
    ) -> None:
        super().__init__(step, max_queries, max_gradients)
        self.steps: int | None = check_optional_count("steps", steps)
        self.temperature: float = check_number("temperature", temperature, 0.0, ends="()")

    def check_defences(self, defences: Sequence[nn.Module]) -> None:
        the_purifier(self.name, defences)

    def climb(self, classifier: nn.Module, image_shape: tuple[int, int, int], eps: float) -> Ascent:
        target = target_of(self.name, classifier)
        relaxed = {
            chain: RelaxedPurifier.of(the_purifier(self.name, list(chain)), image_shape, temperature=self.temperature)
            for chain in target.defended.chains
        }

        def direction(x: Tensor, labels: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor | None]:
            wrong = finished(target, target.logits(x, seeds), labels)
            with torch.enable_grad():
                start = x.detach().requires_grad_()
                seen = target.defended.seen(start, lambda chain, views: relaxed[chain](views))
                logits = [logits for view in seen for logits in target.each(view)]
                return cross_entropy_gradient(logits, labels, start).sign(), wrong

        return Ascent(
            direction,
            round(255.0 * eps),
            steps=bim_steps(round(255.0 * eps)) if self.steps is None else self.steps,
            step=self.step,
            queries=2 * target.views,  # unrolled, and as it is
            gradients=target.backward,
        )
