"""The door for images: whatever the caller passes becomes the uint8 grid used inside, and goes back the same way."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

Images = Tensor | np.ndarray

TORCH_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMPY_DTYPES = tuple(map(np.dtype, ("uint8", "float16", "float32", "float64")))

EXPECTED = (
    "expected a torch tensor or NumPy array (N, C, H, W) or (C, H, W), uint8 in 0..255 or floating point in [0, 1]"
)


@dataclasses.dataclass(frozen=True)
class ImageForm:
    """How the caller's images came: enough to give a result back in the same form.

    batched: whether they had a batch axis. numpy: whether they were a NumPy array.
    """

    numpy: bool
    batched: bool
    dtype: torch.dtype
    device: torch.device

    def images(self, grid: Tensor) -> Images:
        """uint8 (N, C, H, W) on the CPU to the caller's type, rank, dtype and device; floating point is value / 255."""
        if self.dtype.is_floating_point:
            wide = torch.promote_types(self.dtype, torch.float32)
            grid = (grid.to(wide) / 255).to(self.dtype)
        return self.per_image(grid)

    def per_image(self, values: Tensor) -> Images:
        """Any (N, ...) tensor of results to the caller's type, rank and device, keeping its own dtype."""
        values = values if self.batched else values[0]
        return values.numpy() if self.numpy else values.to(self.device)


def to_grid(images: Images, *, keep_device: bool = False) -> tuple[Tensor, ImageForm]:
    """Check images and bring them to the grid: contiguous uint8 (N, C, H, W) on the CPU, detached.

    images: torch tensor or NumPy array, (N, C, H, W) or (C, H, W), any device, uint8 or floating point in [0, 1].
    Floating-point values are rounded to the nearest multiple of 1/255. keep_device: leave images on a GPU there.
    Raises TypeError for another type or dtype, ValueError for another shape, NaN, or values outside [0, 1].
    """
    if isinstance(images, np.ndarray):
        if images.dtype.newbyteorder("=") not in NUMPY_DTYPES:
            raise TypeError(f"{EXPECTED}; got a NumPy array of {images.dtype}")
        images = np.require(images, images.dtype.newbyteorder("="), ["C", "W"])
        tensor, numpy = torch.from_numpy(images), True
    elif isinstance(images, Tensor):
        if images.dtype not in TORCH_DTYPES:
            raise TypeError(f"{EXPECTED}; got a tensor of {images.dtype}")
        tensor, numpy = images.detach(), False
    else:
        raise TypeError(f"{EXPECTED}; got {type(images).__name__}")
    shape = tuple(tensor.shape)
    if tensor.ndim not in (3, 4):
        raise ValueError(f"{EXPECTED}; got shape {shape}")
    form = ImageForm(numpy, tensor.ndim == 4, tensor.dtype, tensor.device)
    if not form.batched:
        tensor = tensor.unsqueeze(0)
    if not keep_device:
        tensor = tensor.cpu()
    if tensor.dtype.is_floating_point:
        tensor = _round(tensor)
    return tensor.contiguous(), form


def _round(tensor: Tensor) -> Tensor:
    """Floating point in [0, 1] to uint8, to nearest."""
    if tensor.numel() == 0:
        return tensor.to(torch.uint8)
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    check_range(tensor)
    return (tensor * 255).round_().to(torch.uint8)


def check_range(tensor: Tensor) -> None:
    """ValueError unless all values of a floating-point tensor that has some are in [0, 1]."""
    lowest, highest = (float(value) for value in tensor.detach().aminmax())
    if lowest != lowest or highest != highest:
        raise ValueError("floating-point images must be in [0, 1], got NaN")
    if lowest < 0.0 or highest > 1.0:
        raise ValueError(f"floating-point images must be in [0, 1], got values from {lowest:g} to {highest:g}")
