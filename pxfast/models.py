"""Which model judges the images: the caller's, or the shipped one that fits their shape."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from .pixelcnn import PixelCNN
from .weights import SHIPPED, load, read_metadata, shipped_path

Model = PixelCNN | str | os.PathLike[str]

_load_shipped = functools.cache(load)


@functools.cache
def _shipped_by_shape() -> dict[tuple[int, int, int], str]:
    configs = {name: read_metadata(shipped_path(name))[0] for name in SHIPPED if shipped_path(name).is_file()}
    return {(config.channels, *config.image_size): name for name, config in configs.items()}


def resolve_model(model: Model | None) -> PixelCNN | None:
    """A model given by name or path, loaded; shipped ones only once. A PixelCNN or None is returned as it is.

    Raises TypeError for anything else, and what :func:`pxfast.load` raises.
    """
    if model is None or isinstance(model, PixelCNN):
        return model
    if isinstance(model, str) and model in SHIPPED:
        return _load_shipped(model)
    if isinstance(model, (str, os.PathLike)):
        return load(model)
    raise TypeError(f"model must be a PixelCNN, a shipped model's name, a path or None, got {type(model).__name__}")


def shipped_for(image_shape: tuple[int, ...]) -> str:
    """The name of the shipped model for images of shape (C, H, W). ValueError where there is none."""
    by_shape = _shipped_by_shape()
    if image_shape not in by_shape:
        known = ", ".join(f"{shape} ({name})" for shape, name in by_shape.items()) or "none"
        raise ValueError(
            f"no shipped model takes images of shape {image_shape}; shipped: {known}; "
            "pass model=, a PixelCNN or the path of a model file"
        )
    return by_shape[image_shape]


def model_path(model: str | os.PathLike[str] | None, image_shape: tuple[int, ...]) -> Path:
    """The file of the model that :func:`model_for` would load."""
    name = shipped_for(image_shape) if model is None else model
    return shipped_path(name) if isinstance(name, str) and name in SHIPPED else Path(name)


def model_for(model: Model | None, image_shape: tuple[int, ...]) -> PixelCNN:
    """The model for images of shape (C, H, W): the given one, or with None the shipped one of that shape.

    Raises ValueError when the given model takes another shape, or when no shipped model takes this one.
    """
    resolved = resolve_model(model)
    image_shape = tuple(image_shape)
    if resolved is None:
        return _load_shipped(shipped_for(image_shape))
    expected = (resolved.config.channels, *resolved.config.image_size)
    if image_shape != expected:
        raise ValueError(f"the model takes images of shape (C, H, W) = {expected}, got {image_shape}")
    return resolved
