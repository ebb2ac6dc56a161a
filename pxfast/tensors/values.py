"""Whether a tensor has values, which whoever decodes an image has to look at."""

from __future__ import annotations

import torch
from torch import Tensor

NO_TRANSFORMS = (
    "expected a tensor that has values, got one inside a transform of torch.func (vmap, grad, jvp ...): purify a batch "
    "at once in place of vmap, and take gradients with torch.autograd, where a purifier's backward says what they are"
)
NO_TRACING = (
    "expected a tensor that has values, got one of a trace (torch.jit.trace, or torch.onnx.export of old), which would "
    "hold this image's result for all images: trace the classifier alone, and purify its images before it"
)


def refuse_transforms(images: Tensor) -> None:
    """TypeError for a tensor inside a transform of torch.func."""
    # torch.compile knows no such tensors, and can't ask
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(images):
        raise TypeError(NO_TRANSFORMS)


def refuse_tracing() -> None:
    """TypeError while this thread makes a trace, which takes for a constant what Python computes."""
    if torch._C._get_tracing_state() is not None:  # of this thread
        raise TypeError(NO_TRACING)


def check_has_values(images: Tensor) -> None:
    """TypeError inside a transform of torch.func, and in a trace."""
    refuse_transforms(images)
    refuse_tracing()
