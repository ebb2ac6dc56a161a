"""Sanity checks of an evaluation under attack: whether a stronger attack was the stronger one.

Each compares two attacks on the same images. A purifier that hides gradients makes the weaker one win.
Source: Athalye et al. 2018, section 3.1, and Carlini et al. 2019, section 5.
"""

from __future__ import annotations

import math

from torch import Tensor

from .results import FAILED, INCONCLUSIVE, PASSED, Check, wilson_interval

LEVEL = 0.05  # of the one-sided sign test
NEARLY_NONE = 0.05  # accuracy that a large eps may leave before it counts as a failure


def sign_test(wins: int, losses: int) -> float:
    """How likely at least so many wins are, if a win and a loss are equally likely: one-sided, exact."""
    total = wins + losses
    return float(sum(math.comb(total, k) for k in range(wins, total + 1)) / 2**total)


def compare(name: str, weaker: tuple[str, Tensor], stronger: tuple[str, Tensor], clean: Tensor) -> Check:
    """Whether the stronger attack breaks at least as many images as the weaker one.

    Each is a label and which images are still right under it, bool (N,), N > 0. It fails where the weaker one breaks
    significantly more. It is inconclusive where it breaks more by chance, or where the stronger one breaks none of the
    images that are right without an attack, ``clean``, bool (N,).
    """
    (weak, left), (strong, right) = weaker, stronger
    wins, losses = int((~left & right).sum()), int((left & ~right).sum())
    numbers = f"{int(left.sum())} of {len(left)} right under {weak}, {int(right.sum())} under {strong}"
    if wins > losses:
        chance = sign_test(wins, losses)
        outcome = FAILED if chance < LEVEL else INCONCLUSIVE
        numbers += f"; p {chance:.2g}"
    elif not bool((clean & ~right).any()) and bool(clean.any()):
        outcome = INCONCLUSIVE
    else:
        outcome = PASSED
    return Check(name, outcome, numbers)


def none_left(name: str, attack: str, right: Tensor) -> Check:
    """Whether no image is right any more. right: bool (N,), N > 0. A few prove nothing."""
    count = int(right.sum())
    low, _ = wilson_interval(count, len(right))
    outcome = PASSED if not count else FAILED if low > NEARLY_NONE else INCONCLUSIVE
    return Check(name, outcome, f"{count} of {len(right)} right under {attack}")
