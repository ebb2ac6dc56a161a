"""Images as pipelines hold them in a column: arrays and tensors, Pillow's images, and lists of these or of numbers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .images import Images


def column_images(column: Any, name: str) -> tuple[Any, Callable[[Any], Any]]:
    """A column's images as :func:`pxfast.purify` takes them, and a function that gives a result back as they came.

    One of Pillow's images, a list of them, of arrays or of tensors (C, H, W), and nested lists of numbers become an
    array or a tensor; anything else is left as it is. ``name`` is the column's, for messages. Raises ValueError for
    images of several shapes, and for those of Pillow's that :func:`pxfast.data.image_decoding.read_image` would refuse.
    """
    if _is_pillow(column):
        from .image_decoding import array_pillow, pillow_array

        return pillow_array(column, f"the image in {name!r}"), lambda found: array_pillow(np.asarray(found))
    if not isinstance(column, (list, tuple)) or not column:
        return column, lambda found: found
    if _is_pillow(column[0]):
        from .image_decoding import array_pillow, pillow_array

        for i, each in enumerate(column):
            if not _is_pillow(each):
                raise TypeError(f"expected Pillow's images in {name!r}, got {type(each).__name__} as image {i}")
        arrays = [pillow_array(each, f"image {i} in {name!r}") for i, each in enumerate(column)]
        return _stacked(arrays, name), lambda found: [array_pillow(each) for each in np.asarray(found)]
    if isinstance(column[0], (np.ndarray, Tensor)):
        return _stacked(column, name), list
    return _numbers(column, name), lambda found: found.tolist()


def _is_pillow(value: Any) -> bool:
    """Whether it is one of Pillow's images. Pillow is not imported for this: then there is none."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


def _stacked(images: Any, name: str) -> Images:
    """Arrays or tensors of one shape as one of them. TypeError or ValueError for others."""
    kind = Tensor if isinstance(images[0], Tensor) else np.ndarray
    for i, image in enumerate(images):
        if not isinstance(image, kind):
            raise TypeError(f"expected images of {kind.__name__} in {name!r}, got one of {type(image).__name__}")
        if image.shape != images[0].shape:
            shapes = f"{tuple(images[0].shape)} and {tuple(image.shape)}"
            raise ValueError(f"the images in {name!r} must have one shape (C, H, W), image {i} has another: {shapes}")
    return torch.stack(list(images)) if kind is Tensor else np.stack(images)


def _numbers(column: Any, name: str) -> Images:
    """Nested lists of integers in 0..255 as uint8, of other numbers as fp64. ValueError for anything else."""
    try:
        array = np.asarray(column)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"expected lists of numbers of one shape, (N, C, H, W) or (C, H, W), in {name!r}")
    if array.dtype.kind == "f":
        return array
    if array.size and not (array.min() >= 0 and array.max() <= 255):
        raise ValueError(f"expected integers in 0..255 in {name!r}, got {array.min()} to {array.max()}")
    return array.astype(np.uint8)
