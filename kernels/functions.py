"""Elementwise functions that the kernels share. Every one works in the precision of its argument."""

from __future__ import annotations

import triton
import triton.language as tl

UNIT = tl.constexpr(16)  # elements; places in the caches are multiples of it, which the compiler can rely on


@triton.jit
def sigmoid(x):
    t = tl.exp(-tl.abs(x))  # so that nothing overflows
    s = 1.0 / (1.0 + t)
    return tl.where(x >= 0, s, t * s)


@triton.jit
def log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def tanh(x):
    t = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - t) / (1.0 + t)
    return tl.where(x >= 0, magnitude, -magnitude)


@triton.jit
def relative_sinh(w):
    """sinh(w / 2) / (w / 2) for 0 <= w <= 1."""
    x = 0.25 * w * w
    series = 1.0 + x / 156.0
    series = 1.0 + x / 110.0 * series
    series = 1.0 + x / 72.0 * series
    series = 1.0 + x / 42.0 * series
    series = 1.0 + x / 20.0 * series
    return 1.0 + x / 6.0 * series


@triton.jit
def concat_elu(x):
    """elu(x) and elu(-x): one exponential serves both."""
    saturated = tl.exp(-tl.abs(x)) - 1.0
    return tl.where(x >= 0, x, saturated), tl.where(x >= 0, saturated, -x)
