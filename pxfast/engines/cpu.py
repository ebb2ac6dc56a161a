"""The CPU engine: the compiled decode loop of csrc/cpu, over all images of a batch at once.

Environment, read at every call: ``PXFAST_THREADS`` (default: the processors this process may use), ``PXFAST_ISA``
(avx512bf16, avx512, avx2 or portable; default: the best one here), ``PXFAST_ORDER`` (sequential or speculative;
default: by the batch size). Neither threads nor order change a bit of the result.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..schedule import Schedule
from .choosers import Chooser, Sample

try:
    _C: Any = importlib.import_module("pxfast._C")
    _import_error: str | None = None
except ImportError as error:  # an install without the compiled module is a normal state: the reference engine works
    _C = None
    _import_error = str(error)


def unavailable() -> str | None:
    """Why the engine can't run here, or None when it can."""
    if _C is None:
        return f"the compiled module is missing ({_import_error}); build it with `pip install .`"
    return None


def best_precision() -> str:
    """The faster precision: 'bf16' where the machine multiplies bf16, 'fp32' elsewhere."""
    return "bf16" if current_isa() == "avx512bf16" else "fp32"


def current_isa() -> str:
    """The instruction set that a decode would use now. ValueError when PXFAST_ISA asks for one not usable here."""
    usable = _C.cpu_isas()
    wish = os.environ.get("PXFAST_ISA") or usable[0]
    if wish not in usable:
        raise ValueError(f"PXFAST_ISA must be one of {', '.join(usable)} on this machine, got {wish!r}")
    return wish


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def current_threads() -> int:
    """The number of threads that a decode would use now. ValueError when PXFAST_THREADS is no positive integer."""
    wish = os.environ.get("PXFAST_THREADS")
    if not wish:
        return usable_processors()
    if not wish.isdecimal() or int(wish) < 1:
        raise ValueError(f"PXFAST_THREADS must be a positive integer, got {wish!r}")
    return int(wish)


HEADS = {"logistic": 0, "softmax": 1, "pixelcnn++": 2}
ORDERS = {"": 0, "auto": 0, "sequential": 1, "speculative": 2}


def current_order() -> int:
    """The compiled engine's number for the order of evaluation. ValueError when PXFAST_ORDER is none of them."""
    wish = os.environ.get("PXFAST_ORDER", "")
    if wish not in ORDERS:
        raise ValueError(f"PXFAST_ORDER must be auto, sequential or speculative, got {wish!r}")
    return ORDERS[wish]


def compiled(schedule: Schedule, precision: str, isa: str) -> Any:
    """The schedule's program with packed weights, ``pxfast._C.CpuEngine``; made once per precision and ISA."""
    key = ("cpu", precision, isa)
    with schedule.lock:
        if key not in schedule.compiled:
            schedule.compiled[key] = _C.CpuEngine(program_of(schedule), isa, precision == "bf16")
        return schedule.compiled[key]


def program_of(schedule: Schedule) -> dict[str, Any]:
    """The schedule as the compiled engines take it: plain values and NumPy arrays."""

    def optional(cache: int | None) -> int:
        return -1 if cache is None else cache

    config = schedule.config
    tables = getattr(schedule.model.head, "tables", torch.zeros(0))
    return {
        "channels": config.channels,
        "height": config.image_size[0],
        "width": config.image_size[1],
        "filters": config.filters,
        "head": HEADS[config.head],
        "mixtures": config.mixtures,
        "tables": tables.numpy(),
        "input_cache": schedule.input_cache,
        "caches": [(cache.level, cache.channels, cache.rows) for cache in schedule.caches],
        "steps": [
            {
                "level": step.level,
                "per_row": step.per_row,
                "scale": int(step.scale),
                "epilogue": int(step.epilogue),
                "outputs": step.outputs,
                "multiplier": step.multiplier,
                "concat_elu": optional(step.concat_elu),
                "raw": optional(step.raw),
                "elu": optional(step.elu),
                "taps": [
                    (tap.cache, tap.row, tap.column, tap.row_parity, tap.column_parity, tap.matrix.numpy())
                    for tap in step.taps
                ],
                "biases": [(bias.values.numpy(), bias.min_row, bias.min_column) for bias in step.biases],
            }
            for step in schedule.steps
        ],
    }


def plain_chooser(chooser: Chooser, N: int) -> dict[str, Any]:
    """A chooser for N images as the compiled engine takes it."""
    if isinstance(chooser, Sample):
        inverse_temperature = 1.0 / chooser.temperature
        return {"seed": chooser.seed, "first": chooser.first, "inverse_temperature": inverse_temperature}
    keep_probability = 2.0 if chooser.keep_bits is None else 2.0**-chooser.keep_bits
    return {"eps": chooser.eps_of(N).numpy(), "keep_probability": keep_probability}


def decode(
    schedule: Schedule,
    images: Tensor,
    chooser: Chooser,
    *,
    precision: str,
    report: Callable[[int], None] | None = None,
) -> Tensor:
    """See :class:`pxfast.engines.Decode`. The GIL is released; Ctrl-C raises KeyboardInterrupt within a second."""
    engine = compiled(schedule, precision, current_isa())
    plain = plain_chooser(chooser, len(images))
    result: np.ndarray = engine.decode(images.numpy(), plain, current_threads(), current_order(), report)
    return torch.from_numpy(result)
