"""Checks of arguments that many functions share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Sequence


def check_integer(name: str, value: int, limit: int) -> int:
    """``value`` as a Python int. TypeError unless an integer (bool is not one), ValueError outside 0..limit - 1."""
    message = f"{name} must be an integer in 0..{limit - 1}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if not 0 <= value < limit:
        raise ValueError(message)
    return int(value)


def is_number(value: object) -> bool:
    """Whether it is a real number, of Python's or of NumPy's; bool is none. NaN and the infinities are."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_count(name: str, value: int, least: int = 0) -> int:
    """``value`` as a Python int. TypeError unless an integer (bool is not one), ValueError below ``least``."""
    return _count(value, least, f"{name} must be an integer of at least {least}, got {value!r}")


def check_optional_count(name: str, value: int | None, least: int = 0) -> int | None:
    """``value`` as a Python int, or None; otherwise as :func:`check_count`."""
    message = f"{name} must be None or an integer of at least {least}, got {value!r}"
    return None if value is None else _count(value, least, message)


def _count(value: int, least: int, message: str) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if value < least:
        raise ValueError(message)
    return int(value)


def check_between(name: str, value: int, least: int, most: int) -> int:
    """``value`` as a Python int. TypeError unless an integer (bool is not one), ValueError outside least..most."""
    message = f"{name} must be an integer in {least}..{most}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(message)
    if not least <= value <= most:
        raise ValueError(message)
    return int(value)


def check_size(size: Sequence[int], least: int = 1, unit: int = 1) -> tuple[int, int]:
    """``size`` of an image as a tuple (H, W). ValueError unless two integers, multiples of ``unit``, least..16384."""
    if (
        not isinstance(size, (tuple, list))
        or len(size) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) for side in size)
        or any(not least <= side <= LONGEST_SIDE or side % unit for side in size)
    ):
        kind = "integers" if unit == 1 else f"multiples of {unit}"
        raise ValueError(f"image_size must be (H, W), positive {kind} in {least}..{LONGEST_SIDE}, got {size!r}")
    return size[0], size[1]


def check_channels(channels: int) -> int:
    """``channels`` itself. ValueError unless 1 or 3."""
    if isinstance(channels, bool) or not isinstance(channels, int) or channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    return channels


def check_number(name: str, value: float, low: float, high: float = math.inf, *, ends: str = "[]") -> float:
    """``value`` as a Python float. TypeError unless a real number (bool is not one), ValueError outside low..high.

    ends: how the interval is written, a round bracket at an end that does not belong to it, as infinity never does.
    """
    ends = ends[0] + (ends[1] if math.isfinite(high) else ")")
    message = f"{name} must be a number in {ends[0]}{low:g}, {high:g}{ends[1]}, got {value!r}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(message)
    if not low <= value <= high or (ends[0] == "(" and value == low) or (ends[1] == ")" and value == high):
        raise ValueError(message)
    return float(value)


def check_choice(name: str, value: str, choices: Collection[str]) -> str:
    """``value`` itself. ValueError unless one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_flag(name: str, value: bool) -> bool:
    """``value`` itself. TypeError unless True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_eps(eps: int) -> int:
    """``eps``, in steps of the 0..255 grid, as a Python int; raises what :func:`check_integer` does."""
    return check_integer("eps", eps, 256)


def check_precision(precision: str) -> str:
    """``precision`` itself. ValueError unless 'auto', 'fp32' or 'bf16'."""
    return check_choice("precision", precision, ("auto", *PRECISIONS))


PRECISIONS = ("fp32", "bf16")
LONGEST_SIDE = 1 << 14  # pixels, of an image that a network may be made for
