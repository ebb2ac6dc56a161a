"""The GPUs for which the Triton kernels are compiled ahead of time."""

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import pytest
from support.triton_device import INTERPRETED

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def compiles(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that compiles kernels ahead of time."""
    skip = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: this process interprets kernels")
    return pytest.mark.compile(skip(test))


class Target(NamedTuple):
    """A GPU as Triton is told of it. shared: KiB of shared memory that a program may take there."""

    backend: str
    architecture: int | str
    warp: int
    shared: int


TARGETS = {
    "sm_80": Target("cuda", 80, 32, 163),
    "sm_86": Target("cuda", 86, 32, 99),
    "sm_89": Target("cuda", 89, 32, 99),
    "sm_90": Target("cuda", 90, 32, 227),
    "sm_100": Target("cuda", 100, 32, 227),
    "gfx942": Target("hip", "gfx942", 64, 64),
}
