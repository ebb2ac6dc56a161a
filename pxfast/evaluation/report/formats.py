"""Numbers, durations and settings as the report writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def percent(value: float, digits: int = 1) -> str:
    """71.25 as '71.2', 100 as '100'."""
    return "100" if value == 100 else f"{value:.{digits}f}"


def points(difference: float) -> str:
    """A signed difference in points, with a true minus sign: +3.1, 0.0."""
    text = f"{abs(difference):.1f}"
    if text == "0.0":
        return text
    return f"{'−' if difference < 0 else '+'}{text}"  # noqa: RUF001


def number(value: float) -> str:
    """Three significant digits at least, thousands apart: 0.0123, 4.56, 271, 12,345; an integer as it is."""
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def words(name: str) -> str:
    """A key as words: purify_eps as 'purify eps'."""
    return name.replace("_", " ")


def plain(value: Any) -> str:
    """A setting that is no mapping, in words."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(plain(each) for each in value) if value else "none"
    if isinstance(value, dict):
        return "; ".join(f"{words(str(key))} {plain(each)}" for key, each in value.items()) if value else "none"
    return str(value)


def deep(mapping: dict[str, Any]) -> bool:
    """Whether a mapping has others inside."""
    inner = [each for value in mapping.values() for each in (value if isinstance(value, list) else [value])]
    return any(isinstance(each, dict) for each in inner)


def listed(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
