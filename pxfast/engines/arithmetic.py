"""What an engine's rounding depends on: keys of stored results have it."""

from __future__ import annotations

import torch

from ..base.checks import check_precision
from ..base.machine import torch_instructions
from ..kernels import trust
from . import cpu
from .registry import select


def arithmetic_of(engine: str = "auto", precision: str = "auto") -> dict[str, str]:
    """The engine's name, the precision and the instructions of a decode here and now; of 'auto', what it takes.

    Decodes of one model and one image have equal bits where these are equal, whatever the batch and the threads.
    Raises TypeError or ValueError for an unknown engine or precision, RuntimeError for an engine that can't run here.
    """
    chosen = select(engine)
    if chosen.gpu:
        instructions = ", ".join([torch.cuda.get_device_name(), *trust.choices(chosen.name)])
    else:
        instructions = cpu.isa_of() if chosen.name == "cpu" else torch_instructions("cpu")
    precision = chosen.best_precision() if check_precision(precision) == "auto" else precision
    return {"engine": chosen.name, "precision": precision, "instructions": instructions}
