"""Arrays of images in files: what a file says is checked before any of it is read, and its values as they are."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch

from ..base.reading import BoundedFile
from .images import EXPECTED, NUMPY_DTYPES, TORCH_DTYPES, Array, ImagesT, check_range

MAGIC = b"\x93NUMPY"
LARGEST_HEADER = 1 << 14  # bytes; NumPy reads no larger ones


def map_array(path: Path) -> Array:
    """The array of a .npy file through a memory map: nothing of it is read yet.

    Raises FileNotFoundError; ValueError names the file when it is no regular file, truncated, no .npy file (but an .npz
    archive, say), or holds objects.
    """
    try:
        with BoundedFile(path) as file:
            dtype, shape, order = _header(file)
            start = file.tell()
            found, expected = file.seek(0, 2) - start, math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if dtype.itemsize == 0:  # NumPy would make room for characters
            raise ValueError("its values take no bytes")
        if found < expected:
            raise ValueError(f"it has {found} bytes of numbers, and should have {expected}")
        if expected:
            array: Array = np.memmap(path, dtype, "r", start, shape, order)
            return array
        return np.zeros(shape, dtype)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path} is truncated or not a .npy file of numbers: {error}") from None


def _header(file: IO[bytes]) -> tuple[np.dtype[Any], tuple[int, ...], Literal["C", "F"]]:
    """Type, shape and order ('C' or 'F') that a .npy file gives; ``file`` is then where its numbers begin."""
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError("it does not begin as such files do")
    file.seek(0)
    head = io.BytesIO(file.read(LARGEST_HEADER))  # NumPy would make room for a header of 4 GB, if a file says so
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, fortran, dtype = read(head)
    except Exception as error:  # it is a Python literal: parsing it meets SyntaxError, TypeError, MemoryError, ...
        raise ValueError(f"its header is damaged ({type(error).__name__})") from None
    if any(isinstance(side, bool) or not 0 <= side < 1 << 48 for side in shape):
        raise ValueError(f"its shape {shape} is impossible")
    file.seek(head.tell())
    return dtype, shape, "F" if fortran else "C"


def check_images(images: ImagesT, path: Path) -> ImagesT:
    """A file's images as (N, C, H, W). ValueError for another shape, TypeError for another type; both name the file."""
    shape = tuple(images.shape)
    if len(shape) not in (3, 4) or 0 in shape[-3:]:
        raise ValueError(f"{path}: expected images (N, C, H, W) or (C, H, W), found shape {shape}")
    known = images.dtype in TORCH_DTYPES if isinstance(images, torch.Tensor) else _is_known(images.dtype)
    if not known:
        raise TypeError(f"{path}: {EXPECTED}; found {images.dtype}")
    return images if len(shape) == 4 else images[None]


def _is_known(dtype: np.dtype[Any]) -> bool:
    return dtype.newbyteorder("=") in NUMPY_DTYPES


def check_values(images: ImagesT, path: Path) -> ImagesT:
    """A file's ``images`` themselves. ValueError, naming the file, for floating ones outside [0, 1] and NaN."""
    tensor = images if isinstance(images, torch.Tensor) else _floating(images)
    if tensor is not None and tensor.is_floating_point() and tensor.numel():
        try:
            check_range(tensor, hint="")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return images


def _floating(images: Array) -> torch.Tensor | None:
    if images.dtype.kind != "f":
        return None
    return torch.from_numpy(np.require(images, images.dtype.newbyteorder("="), ["C", "W"]))
