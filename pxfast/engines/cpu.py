"""The CPU engine: the compiled decode loop of csrc/cpu, over all images of a batch at once.

Environment, read at every call: ``PXFAST_THREADS`` (default: the processors this process may use), ``PXFAST_ISA``
(avx512bf16, avx512, avx2 or portable; default: the best one here), ``PXFAST_ORDER`` (sequential or speculative;
default: by the batch size). Neither threads nor order change a bit of the result.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.machine import usable_processors
from . import compiled
from .choosers import Chooser
from .compiled import current_order, plain_chooser, program_of
from .schedule import Schedule

unavailable: Callable[[], str | None] = compiled.unavailable


def best_precision() -> str:
    """The faster precision: 'bf16' where the machine multiplies bf16, 'fp32' elsewhere."""
    return "bf16" if current_isa() == "avx512bf16" else "fp32"


def current_isa() -> str:
    """The instruction set that a decode would use now. ValueError when PXFAST_ISA asks for one not usable here."""
    usable = compiled._C.cpu_isas()
    wish = os.environ.get("PXFAST_ISA") or usable[0]
    if wish not in usable:
        raise ValueError(f"PXFAST_ISA must be one of {', '.join(usable)} on this machine, got {wish!r}")
    return wish


def current_threads() -> int:
    """The number of threads that a decode would use now. ValueError when PXFAST_THREADS is no positive integer."""
    wish = os.environ.get("PXFAST_THREADS")
    if not wish:
        return usable_processors()
    if not wish.isdecimal() or int(wish) < 1:
        raise ValueError(f"PXFAST_THREADS must be a positive integer, got {wish!r}")
    return int(wish)


def packed(schedule: Schedule, precision: str, isa: str) -> Any:
    """The schedule's program with packed weights, ``pxfast._C.CpuEngine``; made once per precision and ISA."""
    key = ("cpu", precision, isa)
    with schedule.lock:
        if key not in schedule.compiled:
            schedule.compiled[key] = compiled._C.CpuEngine(program_of(schedule), isa, precision == "bf16")
        return schedule.compiled[key]


def decode(
    schedule: Schedule,
    images: Tensor,
    chooser: Chooser,
    *,
    precision: str,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """See :class:`pxfast.engines.Decode`. The GIL is released; Ctrl-C raises KeyboardInterrupt within a second."""
    engine = packed(schedule, precision, current_isa())
    plain = plain_chooser(chooser, len(images))
    result: np.ndarray = engine.decode(images.numpy(), plain, current_threads(), current_order(), report)
    return torch.from_numpy(result)
