"""Checking a purified image in one forward pass, whatever made it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..base.checks import PRECISIONS, check_choice, check_eps, check_number
from ..data.images import Images, to_grid
from ..engines.choosers import Greedy
from ..pixelcnn.oracle import oracle
from ..pixelcnn.shipped import Model, model_for
from ..tensors.ambient import in_plain_torch
from ..tensors.batches import fewer_if_large
from .rules import DEFAULT_EPS, Within, check_adaptive, check_within, greedy

IMAGES_AT_ONCE = 16  # that the network sees; fewer of large ones
SUB_PIXELS_AT_ONCE = 8192  # that the head is asked of: 84 MB a tensor for all 256 values and 10 components

# In nats. fp32: the rounding of one pass against another, with room for near-ties of sharp components.
# bf16: the engine's activations are rounded as well, which its mean regret shows. An image alone may have more than the
# batch, but not so much that one that was not purified could pass among many.
FP32_THRESHOLD, FP32_FRACTION, FP32_MEAN, FP32_IMAGE = 1e-3, 0.9999, 1e-5, 1e-3
BF16_MEAN, BF16_IMAGE = 5e-3, 5e-2


@dataclasses.dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    regret: (N, C, H, W) float32, nats: log-probability of the best value in range minus that of the chosen one; under
    adaptive='sub-pixel', where that explains better what was done, by how many nats the input's value is on the wrong
    side of the threshold. bounded: whether every sub-pixel is in its range, which lies within ±eps of the input's, or
    was given (eps None). precision: that of the oracle's weights.
    """

    regret: Tensor
    bounded: bool
    eps: int | None
    precision: str

    @property
    def mean_regret(self) -> float:
        """Mean regret in nats; 0 for an empty batch."""
        return float(self.regret.double().mean()) if self.regret.numel() else 0.0

    @property
    def worst_mean_regret(self) -> float:
        """Mean regret in nats of the image where it is largest; 0 for an empty batch."""
        return float(self.regret.double().flatten(1).mean(1).max()) if self.regret.numel() else 0.0

    @property
    def max_regret(self) -> float:
        """Largest regret in nats; 0 for an empty batch."""
        return float(self.regret.max()) if self.regret.numel() else 0.0

    def fraction_within(self, threshold: float) -> float:
        """Fraction of the sub-pixels whose regret is at most ``threshold`` nats; 1 for an empty batch."""
        threshold = check_number("threshold", threshold, 0.0)
        return float((self.regret <= threshold).double().mean()) if self.regret.numel() else 1.0

    @property
    def passed(self) -> bool:
        """Whether the images are what exact purification gives, up to the rounding of the precision.

        fp32: regret at most 1e-3 at 99.99 % of the sub-pixels, and 1e-5 on average, of every single image 1e-3. bf16:
        0.005 on average, of every image 0.05. Always: every sub-pixel in its range.
        """
        if self.precision == "bf16":
            mean, image = BF16_MEAN, BF16_IMAGE
        else:
            mean, image = FP32_MEAN, FP32_IMAGE
        rare = self.precision == "bf16" or self.fraction_within(FP32_THRESHOLD) >= FP32_FRACTION
        return self.bounded and rare and self.mean_regret <= mean and self.worst_mean_regret <= image

    def __bool__(self) -> bool:
        """``passed``: so `assert verify(...)` means what it says."""
        return self.passed

    def __str__(self) -> str:
        return (
            f"{'passed' if self.passed else 'FAILED'} ({self.precision}): regret mean {self.mean_regret:.2e}, "
            f"of the worst image {self.worst_mean_regret:.2e}, maximum {self.max_regret:.2e} nats, "
            f"at most {FP32_THRESHOLD:g} at {100 * self.fraction_within(FP32_THRESHOLD):.3f} % of "
            f"{self.regret.numel()} sub-pixels; {'within' if self.bounded else 'NOT within'} "
            f"{'the ranges' if self.eps is None else f'±{self.eps}'}"
            + ("; a result in bf16 is judged with precision='bf16'" if self._as_bf16 else "")
        )

    @property
    def _as_bf16(self) -> bool:
        """Whether it failed as fp32, and bf16, which `purify` takes by itself on some machines, may be why."""
        rounded = dataclasses.replace(self, precision="bf16").passed and self.precision == "fp32"
        return rounded and not self.passed

    def __repr__(self) -> str:
        return f"Verification({self})"


def regret_of(log_probs_of: Callable[[Tensor], Tensor], given: Tensor, chosen: Tensor, chooser: Greedy) -> Tensor:
    """Regret in nats of chosen values: (N, C, H, W), as given and chosen, uint8.

    log_probs_of: the log-probabilities of values, integers (N, C, H, W, V). Asked for are those in range and the chosen
    one, no others: they are what a verification takes most of its time for.
    """
    lower, upper = (bound.long().unsqueeze(-1) for bound in chooser.ranges(given))
    widest = int((upper - lower).max()) + 1
    in_range = torch.minimum(lower + torch.arange(widest), upper)  # of narrower ranges the last value several times
    value = chosen.long().unsqueeze(-1)
    found = log_probs_of(torch.cat((in_range, value), dim=-1))

    # a value in range is taken from there: at another place of a tensor it may be rounded otherwise
    place = torch.where((value >= lower) & (value <= upper), value - lower, widest)
    regret = found[..., :widest].amax(dim=-1) - found.gather(-1, place).squeeze(-1)
    if chooser.keep_bits is None:
        return regret
    before = found.gather(-1, given.long().unsqueeze(-1) - lower).squeeze(-1)
    spare = before + chooser.keep_bits * math.log(2.0)  # not below 0: the rule keeps the given value
    kept = torch.minimum(regret, (-spare).clamp(min=0.0))
    moved = torch.maximum(regret, spare.clamp(min=0.0))
    return torch.where(chosen == given, kept, moved)


@in_plain_torch
@torch.no_grad()
def verify(
    images: Images,
    purified: Images,
    eps: int = DEFAULT_EPS,
    *,
    within: Within | None = None,
    adaptive: str | None = None,
    threshold: float | None = None,
    model: Model | None = None,
    precision: str = "fp32",
    clip: bool = False,
) -> Verification:
    """How far ``purified`` is from a fixed point of Algorithm 1 on ``images``, by one teacher-forced fp32 pass.

    At every sub-pixel the network, given the earlier sub-pixels of ``purified``, says how likely each of the values in
    range is: within ±eps of the input's, or in the range of ``within``. The chosen one should be the best. This judges
    a result without decoding again, and unlike comparing pixels it isn't thrown off by near-ties, after which two
    correct roundings part ways.

    images, purified: of one shape, each as :func:`pxfast.purify` takes them. eps, within, adaptive, threshold, model,
    clip: what they were purified with. precision: of the engine under test; for 'bf16' the oracle's weights are rounded
    likewise. Where :func:`pxfast.purify` was left to choose, that is its engine's fastest, which `pxfast info` shows.
    Raises TypeError or ValueError for bad input.
    """
    eps = check_eps(eps)
    check_within(within, eps)
    check_adaptive(adaptive, threshold)
    check_choice("precision", precision, PRECISIONS)
    given, _ = to_grid(images, clip=clip)
    chosen, _ = to_grid(purified, clip=clip)
    if given.shape != chosen.shape:
        raise ValueError(f"images and purified differ in shape: {tuple(given.shape)} and {tuple(chosen.shape)}")
    model = model_for(model, given.shape[1:])
    network = oracle(model, precision)
    chooser = greedy(given, model, eps, adaptive, threshold, within)
    lower, upper = chooser.ranges(given)
    regret = torch.zeros(given.shape, dtype=torch.float32)
    _, C, H, W = given.shape
    at_once = fewer_if_large(IMAGES_AT_ONCE, given)
    for start in range(0, len(given), at_once):
        batch = slice(start, start + at_once)
        features = network(chosen[batch])
        rows = max(1, SUB_PIXELS_AT_ONCE // (len(features) * C * W))
        for top in range(0, H, rows):
            part = batch, slice(None), slice(top, top + rows)
            part_chooser = dataclasses.replace(chooser, within=(lower[part], upper[part]))
            log_probs_of = partial(network.head.log_probs, features[:, :, top : top + rows], chosen[part])
            regret[part] = regret_of(log_probs_of, given[part], chosen[part], part_chooser)
    bounded = bool(((lower <= chosen) & (chosen <= upper)).all())
    return Verification(regret, bounded, eps if within is None else None, precision)
