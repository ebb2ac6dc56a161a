"""Which model judges the images: the caller's, or the shipped one that fits their shape."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

from ..tensors.safetensors import read_header
from ..tensors.shipped import Shipped
from .files import FORMAT, load_model, read_metadata
from .network import PixelCNN, PixelCNNConfig

Model = PixelCNN | str | os.PathLike[str]

SHIPPED = Shipped(
    "model",
    PixelCNN,
    {"cifar10": "cifar10.safetensors", "fashion-mnist": "fashion-mnist.safetensors"},
    load_model,
    lambda path: read_metadata(path)[0],
)


def load(name_or_path: str | os.PathLike[str]) -> PixelCNN:
    """Load a model.

    name_or_path: the name of a shipped one, 'cifar10' or 'fashion-mnist', or the path of a model file.
    Returns a PixelCNN in eval mode, fp32, on the CPU. Raises ValueError for an unknown name and for a truncated or
    foreign file, FileNotFoundError for a path that does not exist, TypeError for what is neither. Nothing is unpickled.
    """
    return SHIPPED.load(name_or_path)


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A shipped density model: what :func:`list_models` says of it.

    name: as :func:`load` takes it. image_shape: (C, H, W) of its images. bits_per_dim: its measured mean over the whole
    test set, None where none is noted. parameters: how many numbers its file holds. bytes: the file's size.
    """

    name: str
    image_shape: tuple[int, int, int]
    config: PixelCNNConfig
    bits_per_dim: float | None
    parameters: int
    bytes: int


def list_models() -> list[ModelInfo]:
    """The shipped density models whose files are in this installation. No weights are read."""
    return [_model_info(name, path) for name, path in SHIPPED.items() if path.is_file()]


def _model_info(name: str, path: Path) -> ModelInfo:
    config, notes = read_metadata(path)
    parameters = sum(math.prod(stored.shape) for stored in read_header(path, FORMAT).tensors.values())
    shape = (config.channels, *config.image_size)
    return ModelInfo(name, shape, config, notes.get("test_bits_per_dim"), parameters, path.stat().st_size)


def model_path(model: str | os.PathLike[str] | None, image_shape: tuple[int, ...]) -> Path:
    """The file of the model that :func:`model_for` would load."""
    return SHIPPED.path(SHIPPED.name_for(image_shape) if model is None else model)


def model_for(model: Model | None, image_shape: tuple[int, ...]) -> PixelCNN:
    """The model for images of shape (C, H, W): the given one, or with None the shipped one of that shape.

    Raises ValueError when the given model takes another shape, or when no shipped model takes this one.
    """
    return SHIPPED.for_images(model, image_shape)
