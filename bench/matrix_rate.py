"""This machine's matrix-product rate: what a decode engine's speed is measured against."""

from __future__ import annotations

import dataclasses
import time

import torch

# (rows, inner, columns): a block of images times the taps and channels of the paper's layers (12 x 160 or 4 x 320 in,
# 160 or 320 out), and a larger square product, in case the library is at its best there
SHAPES = ((64, 1920, 320), (128, 1920, 320), (256, 1280, 160), (1024, 1024, 1024))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class MatrixRate:
    """flops: floating-point operations per second, 2 per multiply-add, of the best ``shape`` on ``threads`` threads."""

    flops: float
    shape: tuple[int, int, int]
    precision: str
    threads: int


def matrix_rate(precision: str, threads: int, *, seconds: float = 0.4) -> MatrixRate:
    """The best rate of torch's matrix product over ``SHAPES``, as fast as the best of many short rounds.

    precision: 'fp32' or 'bf16'. seconds: spent on each shape. The best round counts, not the mean: the limit of the
    machine is asked for, not its load of the moment.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rates = [(_rate(shape, DTYPES[precision], seconds), shape) for shape in SHAPES]
    finally:
        torch.set_num_threads(before)
    flops, shape = max(rates)
    return MatrixRate(flops, shape, precision, threads)


def _rate(shape: tuple[int, int, int], dtype: torch.dtype, seconds: float) -> float:
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    out = torch.empty(rows, columns, dtype=dtype)
    torch.mm(a, b, out=out)
    repeats = max(1, round(2e9 / (2 * rows * inner * columns)))  # a round of 2 GFLOP, some milliseconds
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
        best = min(best, (time.perf_counter() - started) / repeats)
    return 2 * rows * inner * columns / best
