"""Model files: safetensors with the configuration in the metadata. Nothing is ever unpickled.

A model file holds, per convolution, the folded weight (bf16 or fp32) and the bias (fp32), and the head's own
parameters. Folding loses nothing: weight normalisation is rebuilt as v = weight, g = |weight|.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..base.checks import check_instance, check_path, notes_json
from ..base.files import whole_file
from ..base.records import shown
from ..tensors.ambient import in_plain_torch
from ..tensors.safetensors import load_network, metadata_record, read_header, read_notes
from .network import PixelCNN, PixelCNNConfig

FORMAT = "pxfast-pixelcnn"


def model_tensors(model: PixelCNN, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a model file; weights in ``dtype``, biases in fp32."""
    tensors = {}
    for name, convolution in model.convolutions():
        tensors[f"{name}.weight"] = convolution.weight().detach().to(dtype)
        tensors[f"{name}.bias"] = convolution.b.detach().float()
    for name, parameter in model.head.named_parameters():
        tensors[f"head.{name}"] = parameter.detach().to(dtype)
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def save(
    model: PixelCNN,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write ``model`` to the model file ``path``, whole or not at all.

    dtype: torch.bfloat16 or torch.float32, of the weights. notes: JSON-able facts kept in the metadata (how it was
    trained, its measured bits/dim). TypeError for others.
    """
    check_instance("model", model, PixelCNN)
    check_path("path", path)
    if dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"dtype must be torch.bfloat16 or torch.float32, got {shown(dtype)}")
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "notes": notes_json(notes),
    }
    with whole_file(path) as temporary:
        save_file(model_tensors(model, dtype), temporary, metadata=metadata)


def read_metadata(path: str | os.PathLike[str]) -> tuple[PixelCNNConfig, dict[str, Any]]:
    """Configuration and notes of a model file, without reading its weights. Raises what :func:`load_model` does."""
    metadata = read_header(path, FORMAT).metadata
    return parse_config(metadata, path), read_notes(metadata, path)


def parse_config(metadata: dict[str, str], path: str | os.PathLike[str]) -> PixelCNNConfig:
    """The configuration in a file's metadata. ValueError names the file and what is wrong."""
    return metadata_record(PixelCNNConfig, metadata, path, "model configuration")


def file_tensors(model: PixelCNN) -> dict[str, Tensor]:
    """The parameters that take a model file's tensors, by the names that these have there; v takes the weight."""
    targets: dict[str, Tensor] = {}
    for name, convolution in model.convolutions():
        targets[f"{name}.weight"] = convolution.v
        targets[f"{name}.bias"] = convolution.b
    for name, parameter in model.head.named_parameters():
        targets[f"head.{name}"] = parameter
    return targets


@in_plain_torch
@torch.no_grad()
def load_model(path: str | os.PathLike[str]) -> PixelCNN:
    """A PixelCNN in eval mode, fp32, on the CPU, from a model file.

    Raises FileNotFoundError, or ValueError when the file is truncated, foreign, or does not fit its configuration.
    Nothing is built before the file's header fits.
    """
    header = read_header(path, FORMAT)
    config = parse_config(header.metadata, path)
    model = load_network(header, config.layers, lambda: PixelCNN(config), file_tensors)
    for _, convolution in model.convolutions():
        convolution.set_weight(convolution.v)
    return model.eval()
