"""Gradients for what has none: the identity's in place of it (BPDA, Athalye et al. 2018), or an error."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ..base.checks import check_choice
from .values import refuse_transforms

BACKWARDS = ("straight-through", "error")


def check_backward(backward: str, *more: str) -> str:
    """``backward`` itself. TypeError or ValueError unless 'straight-through', 'error' or one of ``more``."""
    return check_choice("backward", backward, (*BACKWARDS, *more))


def refuse() -> NoReturn:
    """Raise the RuntimeError of backward='error'."""
    raise RuntimeError(
        "a gradient was asked for through a defence that has none; backward='straight-through' puts the identity's in "
        "its place"
    )


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, result: Tensor) -> Tensor:
        return result.clone()  # an argument itself would be a view, which nothing may change in place

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, result: Tensor) -> Tensor:
        return result.clone()  # an argument itself would be a view, which nothing may change in place

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        refuse()


def with_backward(images: Tensor, result: Tensor, backward: str) -> Tensor:
    """The values of ``result``, as a function of ``images`` of the same shape whose gradient is what ``backward`` says.

    'straight-through': the identity's, so that a gradient arrives at ``images`` as it left ``result``. 'error': asking
    for it raises RuntimeError. TypeError inside a transform of torch.func.
    """
    refuse_transforms(images)
    function = _StraightThrough if backward == "straight-through" else _Refused
    found: Tensor = function.apply(images, result)
    return found
