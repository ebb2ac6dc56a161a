"""The weights of all convolutions at once: a step of many small operations spends its time on starting them.

A convolution of the PixelCNN++ takes a weight that is normalised, and under autocast rounded to bf16, as is its bias:
six operations forward and eight back, besides the convolution itself. The network has over a hundred convolutions, and
a dozen shapes. The operations are the same here, row for row, on all convolutions of a shape side by side.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..network import PixelCNN, WeightNormConv


class _Fold(torch.autograd.Function):
    """v, g and b of convolutions of one shape, all of the v first, to their weights and their biases in a dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        count = len(parameters) // 3
        v = torch.cat(parameters[:count]).contiguous()
        g = torch.cat(parameters[count : 2 * count]).reshape(-1, 1, 1, 1)
        weights, norms = torch.ops.aten._weight_norm_interface(v, g, 0)
        biases = torch.cat(parameters[2 * count :]).to(dtype)
        ctx.save_for_backward(v, g, norms)
        ctx.count = count
        weights = weights.to(dtype, memory_format=torch.channels_last)
        return *weights.chunk(count), *biases.chunk(count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        v, g, norms = ctx.saved_tensors
        count = ctx.count
        of_weights = torch.cat(gradients[:count]).to(v.dtype).contiguous()
        of_v, of_g = torch.ops.aten._weight_norm_interface_backward(of_weights, v, g, norms, 0)
        # to the strides of the parameters, also of 1x1 kernels, so that they are taken over without a copy and
        # optimisers find all lists of tensors alike
        of_v = torch.empty_like(of_v, memory_format=torch.channels_last).copy_(of_v)
        of_b = torch.cat(gradients[count:]).to(v.dtype)
        return None, *of_v.chunk(count), *of_g.flatten().chunk(count), *of_b.chunk(count)


@contextlib.contextmanager
def folded(model: PixelCNN) -> Iterator[None]:
    """Within it the convolutions of ``model`` have their weights and biases, in autocast's dtype where that is on.

    The transposed ones fold their own: their outputs are the second dimension.
    """
    alike: dict[torch.Size, list[WeightNormConv]] = {}
    for _, convolution in model.convolutions():
        if not convolution.transposed:
            alike.setdefault(convolution.v.shape, []).append(convolution)
    device = model.output.v.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.output.v.dtype
    try:
        for convolutions in alike.values():
            v, g, b = ([getattr(each, name) for each in convolutions] for name in "vgb")
            found = _Fold.apply(dtype, *v, *g, *b)
            for convolution, weight, bias in zip(convolutions, found, found[len(v) :], strict=False):
                convolution.folded = (weight, bias)
        yield
    finally:
        for convolutions in alike.values():
            for convolution in convolutions:
                convolution.folded = None
