"""Floating types: the one that a network computes in, and one that is wide enough."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def widened(x: Tensor) -> Tensor:
    """The tensor in fp32, or in fp64 if it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def floating_type(network: nn.Module) -> torch.dtype | None:
    """The type of all floating parameters of a network; None where it has none, or of several types."""
    found = {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def in_type_of(network: nn.Module, images: Tensor) -> Tensor:
    """Floating images in the type of the network's weights, by an operation that autograd follows; uint8 as they are.

    So a network in fp64, fp16 or bf16 takes images of any type. One whose parameters are of several types gets them as
    they are.
    """
    for weight in network.parameters():  # next(..., None) is more than Dynamo of torch 2.6 to 2.8 knows
        if weight.is_floating_point():
            if weight.dtype == images.dtype:
                return images  # without a look at all of them, for each of which a compiled graph would keep a guard
            break
    dtype = floating_type(network) if images.is_floating_point() else None
    return images if dtype is None else images.to(dtype)


@contextlib.contextmanager
def fp32_convolutions(*, exact: bool = True) -> Iterator[None]:
    """Within it, cuDNN's convolutions in fp32 are not rounded to TF32, where that is wanted; all else is as it was."""
    cudnn = torch.backends.cudnn
    if not exact:
        yield
        return
    with cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    ):
        yield
