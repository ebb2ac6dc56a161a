"""Classifier files: safetensors with architecture and configuration in the metadata. Nothing is ever unpickled.

Weights of convolutions and of linear layers are stored in bf16; batch normalisation and biases in fp32.
"""

from __future__ import annotations

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from ..files import whole_file
from ..weights import fill, read_safetensors, stored_tensors
from .architectures import KINDS, build, kind_of
from .classifier import Classifier

FORMAT = "pxfast-classifier"
RESNET_FORMAT = "pxfast-resnet"  # of version 0.1's first files, which are all of the kind 'resnet'
SHIPPED = {"cifar10": "cifar10-resnet62.safetensors", "fashion-mnist": "fashion-mnist-resnet62.safetensors"}


def save_classifier(model: Classifier, path: str | os.PathLike[str], *, notes: dict[str, Any] | None = None) -> None:
    """Write a classifier file, whole or not at all.

    notes: JSON-able facts kept in the metadata (how it was trained, its measured accuracy).
    """
    metadata = {
        "format": FORMAT,
        "architecture": kind_of(model.config),
        "config": json.dumps(dataclasses.asdict(model.config)),
        "notes": json.dumps(notes or {}),
    }
    with whole_file(path) as temporary:
        save_file(stored_tensors(model), temporary, metadata=metadata)


def classifier_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped classifier's name, or of a path. ValueError lists the known names."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"expected a classifier's name or a path, got {type(name_or_path).__name__}")
    text = os.fspath(name_or_path)
    if text in SHIPPED:
        return Path(str(resources.files("pxfast") / "assets" / SHIPPED[text]))
    if os.path.exists(text) or os.sep in text or text.endswith(".safetensors"):
        return Path(text)
    raise ValueError(f"unknown classifier {text!r}; shipped ones: {', '.join(sorted(SHIPPED))}; or pass a file's path")


def read_notes(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes of a classifier file: how it was trained and its measured ``test_accuracy``."""
    return json.loads(read_safetensors(classifier_path(name_or_path), FORMAT, RESNET_FORMAT)[1]["notes"])


def load_classifier(name_or_path: str | os.PathLike[str]) -> Classifier:
    """A shipped classifier by name ('fashion-mnist'), or one from a file: in eval mode, fp32, on the CPU.

    Raises ValueError for an unknown name and for a truncated or foreign file, FileNotFoundError for a path that does
    not exist. Nothing is unpickled.
    """
    path = classifier_path(name_or_path)
    tensors, metadata = read_safetensors(path, FORMAT, RESNET_FORMAT)
    kind = "resnet" if metadata["format"] == RESNET_FORMAT else metadata.get("architecture", "none")
    if kind not in KINDS:
        raise ValueError(f"{path}: unknown classifier architecture {kind!r}; known: {', '.join(KINDS)}")
    try:
        config = KINDS[kind][1](**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: bad classifier configuration: {error}") from None
    model = build(config)
    fill(model, tensors, str(path))
    return model.eval()
