"""The door of options: one check for each kind of argument, with the words of its errors.

Every message names the argument, what was expected and what came. Integers may be NumPy's, or arrays and tensors of one
integer without a dimension; bools are no integers. What a check gives is Python's own type.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import operator
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from .records import shown

MOST_SEEDS = 1 << 63  # what generators take
LONGEST_SIDE = 1 << 14  # pixels, of an image that a network may be made for
PRECISIONS = ("fp32", "bf16")
SMALLEST_LEVELS = 0.125  # steps of the grid, of a distance that need not be whole


def integer_of(value: object) -> int | None:
    """``value`` as a Python int, if it is an integer; None if not."""
    if isinstance(value, numbers.Integral):
        return None if isinstance(value, bool) else int(value)
    if _dtype_of_scalar(value).startswith(("int", "uint")):
        return operator.index(value)  # type: ignore[arg-type]
    return None


def _dtype_of_scalar(value: object) -> str:
    """The name of the type of an array or tensor without a dimension; empty for anything else."""
    if getattr(value, "shape", None) != () or getattr(getattr(value, "device", None), "type", "") == "meta":
        return ""
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def is_number(value: object) -> bool:
    """Whether it is a real number, of Python's or of NumPy's; bool is none. NaN and the infinities are."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_between(name: str, value: int, least: int, most: int) -> int:
    """``value`` as a Python int. TypeError unless an integer (bool is not one), ValueError outside least..most."""
    return _integer(value, least, most, f"{name} must be an integer in {least}..{most}")


def check_integer(name: str, value: int, limit: int) -> int:
    """As :func:`check_between` 0 and limit - 1."""
    return check_between(name, value, 0, limit - 1)


def check_count(name: str, value: int, least: int = 0) -> int:
    """``value`` as a Python int. TypeError unless an integer (bool is not one), ValueError below ``least``."""
    return _integer(value, least, None, f"{name} must be an integer of at least {least}")


def check_optional_count(name: str, value: int | None, least: int = 0) -> int | None:
    """``value`` as a Python int, or None; otherwise as :func:`check_count`."""
    expected = f"{name} must be None or an integer of at least {least}"
    return None if value is None else _integer(value, least, None, expected)


def _integer(value: int, least: int, most: int | None, expected: str) -> int:
    found = integer_of(value)
    if found is None:
        raise TypeError(f"{expected}, got {shown(value)}")
    if found < least or (most is not None and found > most):
        raise ValueError(f"{expected}, got {shown(value)}")
    return found


def check_size(size: Sequence[int], least: int = 1, unit: int = 1) -> tuple[int, int]:
    """``size`` of an image as a tuple (H, W). TypeError unless two integers.

    ValueError unless they are multiples of ``unit`` in least..16384.
    """
    kind = "integers" if unit == 1 else f"multiples of {unit}"
    expected = f"image_size must be (H, W), positive {kind} in {least}..{LONGEST_SIDE}"
    sides = [integer_of(side) for side in size] if isinstance(size, (tuple, list)) else [None]
    whole = [side for side in sides if side is not None]
    if len(whole) < len(sides):
        raise TypeError(f"{expected}, got {shown(size)}")
    if len(whole) != 2 or any(not least <= side <= LONGEST_SIDE or side % unit for side in whole):
        raise ValueError(f"{expected}, got {shown(size)}")
    return whole[0], whole[1]


def check_channels(channels: int) -> int:
    """``channels`` as a Python int. TypeError unless an integer, ValueError unless 1 or 3."""
    found = integer_of(channels)
    if found not in (1, 3):
        raise (TypeError if found is None else ValueError)(f"channels must be 1 or 3, got {shown(channels)}")
    return found


def check_number(
    name: str, value: float, low: float, high: float = math.inf, *, ends: str = "[]", hint: str = ""
) -> float:
    """``value`` as a Python float. TypeError unless a real number (bool is not one), ValueError outside low..high.

    ends: how the interval is written, a round bracket at an end that does not belong to it, as infinity never does.
    hint: what the messages add.
    """
    ends = ends[0] + (ends[1] if math.isfinite(high) else ")")
    message = f"{name} must be a number in {ends[0]}{low:g}, {high:g}{ends[1]}, got {shown(value)}{hint}"
    if not is_number(value):
        raise TypeError(message)
    if not low <= value <= high or (ends[0] == "(" and value == low) or (ends[1] == ")" and value == high):
        raise ValueError(message)
    try:
        return float(value)
    except OverflowError:  # an integer that no float can hold
        raise ValueError(message) from None


def check_optional_number(
    name: str, value: float | None, low: float, high: float = math.inf, *, ends: str = "[]"
) -> float | None:
    """``value`` as a Python float, or None; otherwise as :func:`check_number`."""
    return None if value is None else check_number(name, value, low, high, ends=ends)


def check_choice(name: str, value: str, choices: Collection[str]) -> str:
    """``value`` itself. TypeError unless a text, ValueError unless one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
    return value


def check_text(name: str, value: str) -> str:
    """``value`` itself. TypeError unless a text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text, got {shown(value)}")
    return value


def check_names(name: str, value: Iterable[str]) -> list[str]:
    """``value`` as a list. TypeError unless some texts, and no single one; ValueError for none."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of texts, got {shown(value)}")
    found = [check_text(f"each of {name}", each) for each in value]
    if not found:
        raise ValueError(f"{name} must be a list of at least one text, got none")
    return found


def check_path(name: str, value: str | os.PathLike[str]) -> Path:
    """``value`` as a Path. TypeError unless a text or an os.PathLike."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    return Path(value)


def notes_json(notes: dict[str, Any] | None) -> str:
    """A file's notes as JSON. TypeError unless None or a dictionary that JSON can hold."""
    expected = "notes must be a dictionary that JSON can hold"
    if notes is not None and not isinstance(notes, dict):
        raise TypeError(f"{expected}, got {type(notes).__name__}")
    try:
        return json.dumps(notes or {})
    except (TypeError, ValueError) as error:
        raise TypeError(f"{expected}: {error}") from None


def check_flag(name: str, value: bool) -> bool:
    """``value`` as a Python bool. TypeError unless True or False."""
    if isinstance(value, bool):
        return value
    if _dtype_of_scalar(value) == "bool":
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_progress(progress: bool | Callable[[int], None]) -> bool | Callable[[int], None]:
    """``progress`` itself. TypeError unless True, False or a function."""
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a function of the images done, got {shown(progress)}")
    return progress


def check_instance(name: str, value: Any, *kinds: type) -> Any:
    """``value`` itself. TypeError unless of one of ``kinds``."""
    if not isinstance(value, kinds):
        expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be of {expected}, got {type(value).__name__}")
    return value


def check_seed(seed: int, limit: int = MOST_SEEDS) -> int:
    """``seed`` as a Python int; raises what :func:`check_integer` does for 0..limit - 1."""
    return check_integer("seed", seed, limit)


def check_seeds(seeds: Sequence[int], count: int) -> list[int]:
    """``seeds`` as Python ints in 0..2^63 - 1, one for each of ``count`` images; TypeError or ValueError for others."""
    try:
        found = list(seeds)
    except TypeError:
        raise TypeError(f"seeds must be {count} integers, one an image, got {shown(seeds)}") from None
    if len(found) != count:
        raise ValueError(f"expected {count} seeds, one an image, got {len(found)}")
    return [check_integer("each of the seeds", seed, MOST_SEEDS) for seed in found]


def put(record: object, **values: object) -> None:
    """Give fields of a frozen dataclass the values that their checks gave, in its own ``__post_init__``."""
    for name, value in values.items():
        object.__setattr__(record, name, value)


def part_of_range(value: object) -> float | None:
    """``value`` as a part of the range [0, 1], which is how the field writes eps: 8/255, 0.03, or the text '8/255'.

    None for integers, numbers outside (0, 1), and anything else.
    """
    found: float | None = None
    with contextlib.suppress(ValueError, ArithmeticError):
        if isinstance(value, str):
            numerator, slash, denominator = value.partition("/")
            if slash or not numerator.strip().isdigit():
                found = float(numerator) / (float(denominator) if slash else 1.0)
        elif is_number(value) or _dtype_of_scalar(value).startswith(("float", "bfloat")):
            found = float(value)  # type: ignore[arg-type]
    return found if found is not None and 0.0 < found < 1.0 else None


def grid_conversion(name: str, value: object) -> str:
    """What an error adds where ``value``, to be counted in steps of the grid, is a part of [0, 1]; empty otherwise."""
    part = part_of_range(value)
    if part is None:
        return ""
    steps = 255.0 * part
    meant = max(1, round(steps))
    if abs(steps - meant) < 0.02:
        return f"; it counts steps of 0..255: for {meant}/255 write {name}={meant}"
    return f"; it counts steps of 0..255: {part:.3g} is {steps:.4g}/255, write {name}={meant} for {meant}/255"


def check_eps(eps: int, name: str = "eps") -> int:
    """``eps``, in steps of the 0..255 grid, as a Python int; raises what :func:`check_integer` does.

    Elsewhere eps is a part of the range [0, 1], 8/255 say. The error for such a one names the integer meant. name: of
    the argument.
    """
    try:
        return check_integer(name, eps, 256)
    except TypeError as error:
        raise TypeError(f"{error}{grid_conversion(name, eps)}") from None


def check_steps_of_grid(name: str, value: int) -> int:
    """A step's size in steps of the grid, at least 1, as a Python int; raises what :func:`check_count` does.

    The error for a part of the range [0, 1] names the integer meant.
    """
    try:
        return check_count(name, value, 1)
    except TypeError as error:
        raise TypeError(f"{error}{grid_conversion(name, value)}") from None


def check_levels(name: str, value: float) -> float:
    """A distance in steps of the grid that need not be whole, as a Python float: a number of at least 1/8.

    TypeError or ValueError for others. A smaller one is hardly ever meant: 2/255 is the field's way to write 2, which
    the error says.
    """
    value = check_number(name, value, 0.0, ends="()", hint=grid_conversion(name, value))
    if value < SMALLEST_LEVELS:
        expected = f"{name} must be a number of at least {SMALLEST_LEVELS:g}, in steps of the grid"
        raise ValueError(f"{expected}, got {shown(value)}{grid_conversion(name, value)}")
    return value


def check_precision(precision: str) -> str:
    """``precision`` itself. TypeError unless a text, ValueError unless 'auto', 'fp32' or 'bf16'."""
    return check_choice("precision", precision, ("auto", *PRECISIONS))
