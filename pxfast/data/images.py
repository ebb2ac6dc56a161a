"""The door for images: whatever the caller passes becomes the uint8 grid used inside, and goes back the same way."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..base.checks import check_flag
from ..tensors.values import check_has_values, refuse_transforms

Array: TypeAlias = npt.NDArray[Any]
Images: TypeAlias = Tensor | Array
# what comes in goes out: tensors for tensors, arrays for arrays; the third is for callers who do not know which
ImagesT = TypeVar("ImagesT", Tensor, Array, Tensor | Array)

TORCH_DTYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
NUMPY_DTYPES = tuple(map(np.dtype, ("uint8", "float16", "float32", "float64")))

ROUNDING = 1e-6  # by so much a value may be out of [0, 1]: by the rounding of whoever computed it

EXPECTED = (
    "expected a torch tensor or NumPy array (N, C, H, W) or (C, H, W), uint8 in 0..255 or floating point in [0, 1]"
)


@dataclasses.dataclass(frozen=True)
class ImageForm(Generic[ImagesT]):
    """How the caller's images came: enough to give a result back in the same form.

    batched: whether they had a batch axis. numpy: whether they were a NumPy array. kind: see :func:`kind_of`.
    """

    numpy: bool
    batched: bool
    dtype: torch.dtype
    device: torch.device
    kind: type[Tensor] = Tensor

    def images(self, grid: Tensor) -> ImagesT:
        """uint8 (N, C, H, W) on the CPU to the caller's type, rank, dtype and device; floating point is value / 255."""
        if self.dtype.is_floating_point:
            wide = torch.promote_types(self.dtype, torch.float32)
            grid = (grid.to(wide) / 255).to(self.dtype)
        found: Any = self.per_image(grid)
        form: ImagesT = found if self.kind is Tensor else found.as_subclass(self.kind)
        return form

    def per_image(self, values: Tensor) -> ImagesT:
        """Any (N, ...) tensor of results to the caller's type, rank and device, keeping its own dtype.

        On Apple's GPUs float64 becomes float32.
        """
        values = values if self.batched else values[0]
        if values.dtype == torch.float64 and not self.numpy:
            values = values.to(widest(self.device))
        found: Any = values.numpy() if self.numpy else values.to(self.device)
        form: ImagesT = found  # which of them, ``numpy`` says
        return form


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on Apple's GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def kind_of(images: Tensor) -> type[Tensor]:
    """torchvision's class of images or videos that a tensor is of, which its transforms go by; otherwise Tensor."""
    known = None if torch.compiler.is_compiling() else sys.modules.get("torchvision.tv_tensors")
    if known is not None and isinstance(images, (known.Image, known.Video)):
        return type(images)
    return Tensor


def plain(images: Tensor) -> Tensor:
    """The images as a plain tensor where they are of torchvision's class; others as they are."""
    return images if kind_of(images) is Tensor else images.as_subclass(Tensor)


def as_kind_of(images: Tensor, result: Tensor) -> Tensor:
    """A result as torchvision's class of images where the images that it was made of are that."""
    kind = kind_of(images)
    return result if kind is Tensor else result.as_subclass(kind)


def to_grid(images: ImagesT, *, keep_device: bool = False, clip: bool = False) -> tuple[Tensor, ImageForm[ImagesT]]:
    """Check images and bring them to the grid: contiguous uint8 (N, C, H, W) on the CPU, detached.

    images: torch tensor or NumPy array, (N, C, H, W) or (C, H, W), any device, uint8 or floating point in [0, 1].
    Floating-point values are rounded to the nearest multiple of 1/255; less than 1e-6 out of [0, 1] is rounding, too.
    keep_device: leave images on a GPU there. clip: bring values outside [0, 1] to its nearest end.
    Raises TypeError for another type, dtype or layout, for a tensor without values, and within a transform of
    torch.func or a trace of TorchScript; ValueError for another shape, NaN, or values outside [0, 1] without ``clip``.
    """
    clip = check_flag("clip", clip)
    kind: type[Tensor] = Tensor
    if isinstance(images, np.ma.MaskedArray):
        raise TypeError(f"{EXPECTED}; got a masked array: give its masked values some value first, by filled(...)")
    if isinstance(images, np.ndarray):
        if images.dtype.newbyteorder("=") not in NUMPY_DTYPES:
            raise TypeError(f"{EXPECTED}; got a NumPy array of {images.dtype}")
        array = np.require(images, images.dtype.newbyteorder("="), ["C", "W"])
        tensor, numpy = torch.from_numpy(array), True
    elif isinstance(images, Tensor):
        if images.dtype not in TORCH_DTYPES:
            raise TypeError(f"{EXPECTED}; got a tensor of {images.dtype}")
        check_has_values(images)
        if images.layout != torch.strided or images.is_meta or images.is_nested:
            layout = "nested" if images.is_nested else "meta" if images.is_meta else str(images.layout)[6:]
            raise TypeError(f"{EXPECTED}; got a tensor of the kind {layout}, which has no plain values")
        kind = kind_of(images)
        tensor, numpy = plain(images).detach(), False
    else:
        raise TypeError(f"{EXPECTED}; got {type(images).__name__}")
    shape = tuple(tensor.shape)
    if tensor.ndim not in (3, 4):
        raise ValueError(f"{EXPECTED}; got shape {shape}")
    form: ImageForm[ImagesT] = ImageForm(numpy, tensor.ndim == 4, tensor.dtype, tensor.device, kind)
    if not form.batched:
        tensor = tensor.unsqueeze(0)
    if not keep_device:
        tensor = tensor.cpu()
    if tensor.dtype.is_floating_point:
        tensor = _round(tensor, clip)
    return tensor.contiguous(), form


def _round(tensor: Tensor, clip: bool) -> Tensor:
    """Floating point in [0, 1] to uint8, to nearest."""
    if tensor.numel() == 0:
        return tensor.to(torch.uint8)
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    check_range(tensor, clip=clip)
    if clip:
        tensor = tensor.clamp(0.0, 1.0)
    scaled = tensor * 255
    if scaled.is_cpu:  # torch would wake its threads for one image, which then keep a core busy for a while
        np.rint(scaled.numpy(), out=scaled.numpy())
    else:
        scaled.round_()
    return scaled.to(torch.uint8)


def clipped(images: Tensor, clip: bool) -> Tensor:
    """Floating images within [0, 1], if ``clip``, by an operation that autograd follows; others as they are.

    ValueError for NaN, which no end is the nearest of.
    """
    if not clip or not images.is_floating_point() or images.numel() == 0:
        return images
    if not torch.compiler.is_compiling():  # where a value that is looked at would break the graph
        check_range(images, clip=True)
    return images.clamp(0.0, 1.0)


def check_range(tensor: Tensor, *, clip: bool = False, hint: str = "; clip=True clips them") -> None:
    """ValueError unless all values of a floating-point tensor that has some are in [0, 1], but for rounding.

    clip: only NaN is refused. hint: what the message adds.
    """
    refuse_transforms(tensor)
    lowest, highest = (float(value) for value in tensor.detach().aminmax())
    if lowest != lowest or highest != highest:
        raise ValueError("floating-point images must be in [0, 1], got NaN")
    if not clip and (lowest < -ROUNDING or highest > 1.0 + ROUNDING):
        values = f"values from {lowest:.9g} to {highest:.9g}"
        if hint and 2.0 <= highest <= 255.0:  # clipped, they would all be white
            hint = "; values in 0..255 have to be uint8, or divided by 255"
        raise ValueError(f"floating-point images must be in [0, 1], got {values}{hint}")
