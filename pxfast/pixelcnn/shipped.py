"""Which model judges the images: the caller's, or the shipped one that fits their shape."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..tensors.safetensors import read_header
from ..tensors.shipped import Shipped
from ..training.provenance import training_summary
from .files import load_model, read_metadata
from .network import FORMAT, PixelCNN, PixelCNNConfig

Model = PixelCNN | str | os.PathLike[str]

SHIPPED = Shipped(
    "model",
    PixelCNN,
    {"cifar10": "cifar10.safetensors", "fashion-mnist": "fashion-mnist.safetensors"},
    load_model,
    lambda path: read_metadata(path)[0],
)


LICENCE = "Apache-2.0"  # of the weights in the package, which is the package's


def load(name_or_path: str | os.PathLike[str]) -> PixelCNN:
    """Load a model.

    name_or_path: the name of a shipped one, 'cifar10' or 'fashion-mnist', the path of a model file, or a folder that
    :meth:`pxfast.PixelCNN.save_pretrained` wrote.
    Returns a PixelCNN in eval mode, fp32, on the CPU. Raises ValueError for an unknown name and for a truncated or
    foreign file, FileNotFoundError for a path that does not exist, TypeError for what is neither. Nothing is unpickled.
    """
    model = SHIPPED.load(name_or_path)
    if isinstance(name_or_path, str) and name_or_path in SHIPPED:
        model.notes = _shipped_notes(name_or_path, model.notes)
    return model


def _shipped_notes(name: str, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The notes of a shipped file, and what goes without saying in the package: its name is its data set's."""
    return {"dataset": name, "license": LICENCE, **notes}


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """A shipped density model: what :func:`list_models` says of it, and in one line ``str``.

    name: as :func:`load` takes it. image_shape: (C, H, W) of its images. bits_per_dim: its measured mean over the whole
    test set, None where none is noted. parameters: how many numbers its file holds. bytes: the file's size. dataset:
    what it was trained on, as :func:`pxfast.data.datasets.load_dataset` calls it. licence: of the weights, an SPDX
    name. path: its file. training: in how many runs, steps and hours it was trained, and on what; None where nothing is
    noted. notes: all that its file says of it.
    """

    name: str
    image_shape: tuple[int, int, int]
    config: PixelCNNConfig
    bits_per_dim: float | None
    parameters: int
    bytes: int
    dataset: str
    licence: str
    path: Path
    training: str | None
    notes: dict[str, Any] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        shape, bits = "x".join(map(str, self.image_shape)), self.bits_per_dim
        facts = (
            f"{self.name}: {shape} images of {self.dataset}",
            f"{self.config.head} head, filters {self.config.filters}, resnets {self.config.resnets}",
            f"{self.parameters / 1e6:.2f} M parameters, {self.bytes / 1e6:.1f} MB",
            "bits/dim not measured" if bits is None else f"{bits:.4f} bits/dim on the test set",
            f"{self.licence}",
            "training not noted" if self.training is None else f"trained in {self.training}",
        )
        return "; ".join(facts)


def list_models() -> list[ModelInfo]:
    """The shipped density models whose files are in this installation. No weights are read.

    ``for model in pxfast.list_models(): print(model)`` shows a line of each.
    """
    return [_model_info(name, path) for name, path in SHIPPED.items() if path.is_file()]


def _model_info(name: str, path: Path) -> ModelInfo:
    config, own = read_metadata(path)
    notes = _shipped_notes(name, own)
    return ModelInfo(
        name=name,
        image_shape=(config.channels, *config.image_size),
        config=config,
        bits_per_dim=notes.get("test_bits_per_dim"),
        parameters=sum(math.prod(stored.shape) for stored in read_header(path, FORMAT).tensors.values()),
        bytes=path.stat().st_size,
        dataset=notes["dataset"],
        licence=notes["license"],
        path=path,
        training=training_summary(notes),
        notes=notes,
    )


def model_path(model: str | os.PathLike[str] | None, image_shape: tuple[int, ...], option: str = "model") -> Path:
    """The file of the model that :func:`model_for` would load. option: what an error calls ``model``."""
    return SHIPPED.path(SHIPPED.name_for(image_shape, option) if model is None else model)


def model_for(model: Model | None, image_shape: tuple[int, ...]) -> PixelCNN:
    """The model for images of shape (C, H, W): the given one, or with None the shipped one of that shape.

    Raises ValueError when the given model takes another shape, or when no shipped model takes this one.
    """
    return SHIPPED.for_images(model, image_shape)
