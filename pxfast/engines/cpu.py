"""The CPU engine: the compiled decode loop of csrc/cpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from ..schedule import Schedule

if TYPE_CHECKING:
    from . import Greedy


def unavailable() -> str | None:
    """Why the compiled module is missing, or None."""
    return "not compiled yet"


def best_precision() -> str:
    return "bf16"


def decode(schedule: Schedule, images: Tensor, chooser: Greedy, *, precision: str, report: Callable[[int], None] | None = None) -> Tensor:
    raise NotImplementedError
