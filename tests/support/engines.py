"""Which engines and instruction sets are here. Tests of the others are left out, and the report's last lines say why.

A test that needs one engine is marked ``engine("cpu")``; the fixture ``engine`` gives every engine that is here. What
needs only the CUDA part of the compiled module, which plans without a GPU, is marked ``engine("cuda-plan")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from pxfast.engines import compiled
from pxfast.engines.registry import ENGINES

MISSING = {name: reason for name, entry in ENGINES.items() if (reason := entry.unavailable()) is not None}
ENGINE_PARAMS = [
    pytest.param(name, marks=[pytest.mark.gpu] * entry.gpu) for name, entry in ENGINES.items() if name not in MISSING
]


def engines_with(
    values: Iterable[Any],
    too_slow: Callable[[Any], bool] = lambda value: False,
    whole: Callable[[str, Any], bool] = lambda engine, value: False,
) -> list[Any]:
    """Parameters (engine, value) of a test: every engine with every value, save what the reference is too slow for.

    The pairs of which ``whole`` says so are left out of the inner loop.
    """
    return [
        pytest.param(
            engine,
            value,
            marks=(*marks, *[pytest.mark.whole] * whole(engine, value)),
            id=f"{engine}-{name_of(value)}",
        )
        for (engine,), marks, _ in ENGINE_PARAMS
        for value in values
        if not (engine == "reference" and too_slow(value))
    ]


def name_of(value: Any) -> str:
    """How a test's name calls a parameter: a tuple of head and channels as ``softmax-3``, others as they are."""
    if isinstance(value, tuple) and isinstance(value[0], str):
        return "-".join(map(str, value))
    return str(value).replace(" ", "")


QUICK = "reference" if "cpu" in MISSING else "cpu"  # for tests that need any engine: the reference takes seconds

ABSENT = {*MISSING, *(() if compiled._C is not None and compiled._C.cuda else ("cuda-plan",))}
ISAS = ("portable", "avx2", "avx512", "avx512bf16", "avx512amx", "neon", "neonbf16")
INSTRUCTION_SETS = [] if compiled._C is None else [isa for isa in ISAS if isa in compiled._C.cpu_isas()]


def is_here(item: pytest.Item) -> bool:
    """Whether what a test's marks ``engine`` and ``gpu`` name is on this machine."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        return False
    return not any(name in ABSENT for mark in item.iter_markers("engine") for name in mark.args)


def left_out() -> list[str]:
    """A line for each engine whose tests are left out, and one for the instruction sets."""
    lines = [f"engine {name!r} is not here, its tests are left out: {reason}" for name, reason in MISSING.items()]
    if INSTRUCTION_SETS and (absent := set(ISAS) - set(INSTRUCTION_SETS)):
        lines.append(f"instruction sets not here, their tests are left out: {', '.join(sorted(absent))}")
    return lines
