"""Cells of grey levels: all that splitting noise tells of an image, and the ranges that it is purified within.

Levine and Feizi, "Improved, Deterministic Smoothing for L1 Certified Robustness", ICML 2021. Each sub-pixel i tells
only in which cell of ``width`` grey levels it lies. Its cells begin at s + v_i and every ``width`` from there. v is
fixed, and s is an offset in 0..width - 1. v is an ordered dither, as halftones have it: neighbours whose borders differ
much tell more of the image together than neighbours with chance borders.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_choice
from ..engines.choosers import uniforms

DITHERS = ("lattice", "random")
MOST_WIDTH = 1024  # of a cell, in grey levels
PLASTIC = 1.32471795724474602596  # the real root of x^3 = x + 1


def shifts(image_shape: tuple[int, int, int], width: int, dither: str = "lattice", seed: int = 0) -> Tensor:
    """v: where the cells of each sub-pixel begin, int64 (C, H, W) in 0..width - 1.

    image_shape: (C, H, W). width: of a cell in grey levels. dither: which numbers u_i in [0, 1) give
    v_i = floor(width u_i). 'lattice': the fraction of row / g + column / g^2 + c / C with the plastic number g
    (Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018), so that neighbours and channels differ
    much. 'random', as in the paper: the uniform number (:func:`pxfast.engines.choosers.uniforms`) of ``seed``, image
    i = (c H + row) W + column and position 0. The same everywhere, and known to an attacker. Raises ValueError for
    another dither.
    """
    check_choice("dither", dither, DITHERS)
    C, H, W = image_shape
    if dither == "lattice":
        channel, row, column = np.ogrid[:C, :H, :W]
        u = (row / PLASTIC + column / (PLASTIC * PLASTIC) + channel / C) % 1.0
    else:
        u = uniforms(seed, np.arange(C * H * W, dtype=np.uint64), 0).reshape(image_shape)
    return torch.from_numpy(np.floor(u * width).astype(np.int64))


def cells(images: Tensor, width: int, starts: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the greatest value of the cell of every sub-pixel: uint8, of the images' shape.

    images: uint8 (N, C, H, W), or of any other shape. width: of a cell, in grey levels. starts: integers, of a shape
    that broadcasts with the images'; cells begin at ``starts`` and every ``width`` from there, and end at 0 and 255.
    """
    values = images.to(torch.int64)
    lower = values - (values - starts) % width
    return lower.clamp(min=0).to(torch.uint8), (lower + width - 1).clamp(max=255).to(torch.uint8)


def midpoints(lower: Tensor, upper: Tensor) -> Tensor:
    """The middle of each cell in [0, 1], float32; lower, upper: its ends, uint8."""
    return (lower.float() + upper.float()) / 510.0
