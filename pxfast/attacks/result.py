"""What an attack gives: images, which of them are misclassified, and what they cost."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, repr=False)
class AttackResult:
    """Attacked images, and which of them the classifier gets wrong: before the attack, and before and after rounding.

    images: (N, C, H, W), of the type that was given. The rest are bool (N,), true where the classifier's label is not
    the given one: clean: of the images as they came; unrounded: of the attack's floating-point result; nearest: of that
    result rounded to the nearest grid values; rounded: of ``images``, where perturbations that rounding had disarmed
    were stretched until they worked again.

    queries, gradients: int64 (N,), what each image cost, as
    :class:`pxfast.attacks.climb.Climb` counts them; None where the attack counts none.
    seconds: spent on the attack itself, without the judging.
    """

    images: Tensor
    clean: Tensor
    unrounded: Tensor
    nearest: Tensor
    rounded: Tensor
    queries: Tensor | None = None
    gradients: Tensor | None = None
    seconds: float = 0.0

    def rates(self) -> dict[str, float]:
        """The fractions in [0, 1] of images that are misclassified, by stage; NaN without images."""
        return {stage: float(getattr(self, stage).double().mean()) for stage in STAGES}

    def ordered(self, places: Tensor) -> AttackResult:
        """The same images in the order of their places: int64 (N,), on the CPU, each of 0..N - 1 once."""
        order = places.argsort()

        def chosen(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[order.to(values.device)]

        tensors = {name: chosen(getattr(self, name)) for name in ("images", *STAGES, *COSTS)}
        return dataclasses.replace(self, **tensors)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def __str__(self) -> str:
        if len(self.images) == 0:
            return "no images"
        rates = {stage: f"{100 * rate:.1f} %" for stage, rate in self.rates().items()}
        return (
            f"misclassified of {len(self.images)} images: {rates['clean']} before the attack, {rates['unrounded']} "
            f"after it, {rates['nearest']} rounded to the nearest grid values, {rates['rounded']} as returned"
        )


STAGES = ("clean", "unrounded", "nearest", "rounded")
COSTS = ("queries", "gradients")


def join(results: list[AttackResult]) -> AttackResult:
    """The results of consecutive images as one. At least one result."""

    def whole(name: str) -> Tensor:
        return torch.cat([getattr(result, name) for result in results])

    counted = [result for result in results if len(result.images)]
    costs: dict[str, Tensor | None] = dict.fromkeys(COSTS)
    for name in COSTS:
        each = [getattr(result, name) for result in counted]
        if each and all(cost is not None for cost in each):
            costs[name] = torch.cat(each)
    return AttackResult(
        whole("images"),
        whole("clean"),
        whole("unrounded"),
        whole("nearest"),
        whole("rounded"),
        costs["queries"],
        costs["gradients"],
        sum(result.seconds for result in results),
    )
