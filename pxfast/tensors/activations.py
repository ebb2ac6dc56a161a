"""ELU, the activation of both networks, at the speed of an exponential.

torch's own takes an expm1 a value, and on a CPU with AVX-512 eight times as long (bench/experiments/elementwise.py).
exp(x) - 1 has an absolute error of 1e-7 at most, as every value of the size of 1 has it. The gradients are written out:
autograd's of a maximum and an absolute value cost a compiled training step a fifth of its time. Outside of compiled
code values are computed in place and where they are to stand, since memory that is fresh from the system costs time.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .floating import widened


class _KeepsInput(torch.autograd.Function):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


class _Elu(_KeepsInput):
    """Max(x, exp(x) - 1), whose gradient is exp(x) below zero and one elsewhere: no ties to share, as maximum's has."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        wide = widened(x)
        below = wide.clamp(max=0.0).exp_().sub_(1.0)
        return torch.maximum(wide, below).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return (gradient * widened(x).clamp(max=0.0).exp_()).to(x.dtype)


class _ConcatElu(_KeepsInput):
    """Both halves by one exponential exp(-abs(x)), in the values and in the gradients."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        wide = widened(x)
        below = wide.abs().neg_().exp_().sub_(1.0)
        if torch.compiler.is_compiling():  # which fuses all of it, and does not trace `out`
            return torch.cat((torch.maximum(wide, below), torch.maximum(-wide, below)), dim=1).to(x.dtype)
        N, features, H, W = wide.shape
        last = below.is_contiguous(memory_format=torch.channels_last) and not below.is_contiguous()
        layout = torch.channels_last if last else torch.contiguous_format
        both = torch.empty((N, 2 * features, H, W), dtype=wide.dtype, memory_format=layout)
        torch.maximum(wide, below, out=both[:, :features])
        torch.maximum(-wide, below, out=both[:, features:])
        return both.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        wide = widened(x)
        of_x, of_minus_x = gradient.chunk(2, dim=1)
        if not torch.compiler.is_compiling():  # two exponentials take less than choosing between one and 1
            from_x, from_minus_x = of_x * wide.clamp(max=0.0).exp_(), of_minus_x * wide.clamp(min=0.0).neg_().exp_()
            return from_x.sub_(from_minus_x).to(x.dtype)
        slope = torch.exp(-wide.abs())
        ones = torch.ones_like(slope)
        return (of_x * torch.where(wide > 0, ones, slope) - of_minus_x * torch.where(wide < 0, ones, slope)).to(x.dtype)


def _differentiable(x: Tensor) -> bool:
    """Whether a gradient may be asked for: torch takes longer to look for the forward function than it computes."""
    return x.requires_grad and torch.is_grad_enabled()


def elu(x: Tensor) -> Tensor:
    """x where it is positive, exp(x) - 1 elsewhere; any shape."""
    if x.device.type != "cpu":
        return F.elu(x)
    return _Elu.apply(x) if _differentiable(x) else _Elu.forward(x)


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, concatenated along channels: (N, F, H, W) to (N, 2F, H, W)."""
    if x.device.type != "cpu":
        return F.elu(torch.cat((x, -x), dim=1))
    return _ConcatElu.apply(x) if _differentiable(x) else _ConcatElu.forward(x)
