"""Programs and choosers as the compiled module takes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import environment
from ..base.native import _C, unavailable
from .choosers import Chooser, Sample
from .schedule import Schedule
from .settings import DecodeSettings

__all__ = ["_C", "chooser_for", "order_of", "plain_chooser", "program_of", "unavailable"]

HEADS = {"logistic": 0, "softmax": 1, "pixelcnn++": 2}
ORDERS = {"auto": 0, "sequential": 1, "speculative": 2}


def order_of(settings: DecodeSettings) -> int:
    """The compiled engines' number for the order of evaluation."""
    return ORDERS[settings.order or environment.order()]


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
                "early": step.early,
                "taps": [
                    (tap.cache, tap.row, tap.column, tap.row_parity, tap.column_parity, tap.matrix.numpy())
                    for tap in step.taps
                ],
                "biases": [(bias.values.numpy(), bias.min_row, bias.min_column) for bias in step.biases],
            }
            for step in schedule.steps
        ],
    }


def plain_chooser(chooser: Chooser) -> dict[str, Any]:
    """A chooser as the compiled engines take it, all but its ranges, which may lie on a device."""
    if isinstance(chooser, Sample):
        return {
            "samples": True,
            "keep_probability": 2.0,
            "seed": chooser.seed,
            "first": chooser.first,
            "inverse_temperature": 1.0 / chooser.temperature,
        }
    keep_probability = 2.0 if chooser.keep_bits is None else 2.0**-chooser.keep_bits
    return {
        "samples": False,
        "keep_probability": keep_probability,
        "seed": 0,
        "first": 0,
        "inverse_temperature": 1.0,
    }


def chooser_for(chooser: Chooser, images: Tensor) -> dict[str, Any]:
    """A chooser as the compiled CPU engine takes it for images (N, C, H, W) uint8."""
    lower, upper = (bound.contiguous().numpy() for bound in chooser.ranges(images))
    return {**plain_chooser(chooser), "lower": lower, "upper": upper}
