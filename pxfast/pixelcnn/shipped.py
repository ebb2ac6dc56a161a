"""Which model judges the images: the caller's, or the shipped one that fits their shape."""

from __future__ import annotations

import os
from pathlib import Path

from ..tensors.shipped import Shipped
from .files import load_model, read_metadata
from .network import PixelCNN

Model = PixelCNN | str | os.PathLike[str]

SHIPPED = Shipped(
    "model",
    PixelCNN,
    {"cifar10": "cifar10.safetensors", "fashion-mnist": "fashion-mnist.safetensors"},
    load_model,
    lambda path: read_metadata(path)[0],
)


def load(name_or_path: str | os.PathLike[str]) -> PixelCNN:
    """Load a shipped model by name ('fashion-mnist') or a model file by path.

    Returns a PixelCNN in eval mode, fp32, on the CPU. Raises ValueError for an unknown name and for a truncated or
    foreign file, FileNotFoundError for a path that does not exist, TypeError for what is neither. Nothing is unpickled.
    """
    return SHIPPED.load(name_or_path)


def model_path(model: str | os.PathLike[str] | None, image_shape: tuple[int, ...]) -> Path:
    """The file of the model that :func:`model_for` would load."""
    return SHIPPED.path(SHIPPED.name_for(image_shape) if model is None else model)


def model_for(model: Model | None, image_shape: tuple[int, ...]) -> PixelCNN:
    """The model for images of shape (C, H, W): the given one, or with None the shipped one of that shape.

    Raises ValueError when the given model takes another shape, or when no shipped model takes this one.
    """
    return SHIPPED.for_images(model, image_shape)
