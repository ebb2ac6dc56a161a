"""The CPU engine: the compiled decode loop of csrc/cpu, over all images of a batch at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base import environment
from ..base.machine import usable_processors
from . import compiled
from .choosers import Chooser
from .compiled import chooser_for, order_of, program_of
from .schedule import Schedule
from .settings import DEFAULTS, DecodeSettings

unavailable: Callable[[], str | None] = compiled.unavailable


def best_precision(settings: DecodeSettings = DEFAULTS) -> str:
    """The faster precision: 'bf16' where the processor multiplies bf16 faster than fp32, 'fp32' elsewhere."""
    return "bf16" if compiled._C.cpu_prefers_bf16(isa_of(settings)) else "fp32"


def isa_of(settings: DecodeSettings = DEFAULTS) -> str:
    """The instruction set that a decode uses: the best one here unless another is asked for.

    ValueError when that is not usable here.
    """
    usable = list(compiled._C.cpu_isas())
    wish = settings.isa or environment.instruction_set() or usable[0]
    if wish not in usable:
        origin = "isa" if settings.isa else "PXFAST_ISA"
        raise ValueError(f"{origin} must be one of {', '.join(usable)} on this machine, got {wish!r}")
    return str(wish)


def threads_of(settings: DecodeSettings = DEFAULTS) -> int:
    """The number of threads that a decode uses: one for each processor this process may use, unless others say."""
    return settings.threads or environment.threads() or usable_processors()


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
    settings: DecodeSettings = DEFAULTS,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """See :class:`pxfast.engines.Decode`. The GIL is released; Ctrl-C raises KeyboardInterrupt within a second."""
    engine = packed(schedule, precision, isa_of(settings))
    plain = chooser_for(chooser, images)
    result: np.ndarray = engine.decode(images.numpy(), plain, threads_of(settings), order_of(settings), report)
    return torch.from_numpy(result)
