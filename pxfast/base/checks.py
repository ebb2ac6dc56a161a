"""Checks of arguments that many functions share."""

from __future__ import annotations

import numbers


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


def check_eps(eps: int) -> int:
    """``eps``, in steps of the 0..255 grid, as a Python int; raises what :func:`check_integer` does."""
    return check_integer("eps", eps, 256)


def check_precision(precision: str) -> str:
    """``precision`` itself. ValueError unless 'auto', 'fp32' or 'bf16'."""
    if precision != "auto" and precision not in PRECISIONS:
        raise ValueError(f"precision must be one of auto, {', '.join(PRECISIONS)}, got {precision!r}")
    return precision


PRECISIONS = ("fp32", "bf16")
