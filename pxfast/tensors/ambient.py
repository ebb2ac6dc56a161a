"""Results that do not depend on torch's ambient state: autocast, inference mode, default type and default device."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

AUTOCAST_DEVICES = ("cpu", "cuda", "xpu", "mps")


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Torch as it is when a program starts: no autocast, no inference mode, float32 and the CPU for new tensors.

    What is computed in here, and what is kept of it, is the same under every caller's mode. The default type belongs to
    the process: a caller who has changed it has it back afterwards, and its other threads see float32 meanwhile.
    """
    with contextlib.ExitStack() as stack:
        if torch.empty(0).device.type != "cpu":  # where it is, the mode would only slow every call of torch
            stack.enter_context(torch.device("cpu"))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for device in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        given = torch.get_default_dtype()
        if given != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, given)
        yield


def in_plain_torch(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, called in :func:`plain_torch`."""

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        with plain_torch():
            return function(*arguments, **options)

    return call
