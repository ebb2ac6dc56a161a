"""Defences in data pipelines whose batches are mappings, such as Ray Data's and Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..data.columns import column_images


class OnColumn:
    """A function of images as one of mappings that hold images in one column: ``OnColumn(Purifier(16), "image")``.

    function: such as a :class:`pxfast.Purifier`; called with the images that the column holds, a tensor or an array
    (N, C, H, W), or (C, H, W) of a single one. A column of Pillow's images, as Hugging Face's datasets have it, or of
    lists of numbers, arrays or tensors becomes an array or a tensor for it, and the result becomes what came: its
    images have one shape each time, those of Pillow's are grey or colour, and lists are of integers in 0..255 or of
    floats in [0, 1]. column: its name; by default "image". Everything else in a mapping is passed on as it is, and the
    mapping itself is not changed. It can be pickled if ``function`` can. Raises TypeError for arguments of other types.
    """

    def __init__(self, function: Callable[[Any], Any], column: str = "image") -> None:
        if not callable(function):
            raise TypeError(f"expected a function of images, got {type(function).__name__}")
        if not isinstance(column, str):
            raise TypeError(f"expected the name of a column, got {column!r}")
        self.function = function
        self.column = column

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A dictionary of the entries of ``batch``, in their order, with the function's result in its column.

        Raises TypeError for what is no mapping, ValueError for one without the column and for images of several shapes,
        and what the function raises.
        """
        if not isinstance(batch, Mapping):
            raise TypeError(f"expected a mapping that has the images in {self.column!r}, got {type(batch).__name__}")
        if self.column not in batch:
            raise ValueError(f"there is no column {self.column!r} in a mapping of {', '.join(map(repr, batch))}")
        images, as_given = column_images(batch[self.column], self.column)
        return {**batch, self.column: as_given(self.function(images))}

    def __repr__(self) -> str:
        return f"OnColumn({self.function!r}, {self.column!r})"
