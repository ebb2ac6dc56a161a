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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base.files import whole_file
from ..tensors.ambient import in_plain_torch
from ..tensors.safetensors import copy_tensors, read_safetensors
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
    trained, its measured bits/dim).
    """
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(model.config)),
        "notes": json.dumps(notes or {}),
    }
    with whole_file(path) as temporary:
        save_file(model_tensors(model, dtype), temporary, metadata=metadata)


def read_metadata(path: str | os.PathLike[str]) -> tuple[PixelCNNConfig, dict[str, Any]]:
    """Configuration and notes of a model file, without reading its weights."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    return parse_config(metadata, path), json.loads(metadata.get("notes", "{}"))


def parse_config(metadata: dict[str, str], path: str | os.PathLike[str]) -> PixelCNNConfig:
    try:
        return PixelCNNConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: bad model configuration: {error!r}") from None


@in_plain_torch
@torch.no_grad()
def load_model(path: str | os.PathLike[str]) -> PixelCNN:
    """A PixelCNN in eval mode, fp32, on the CPU, from a model file.

    Raises FileNotFoundError, or ValueError when the file is truncated, foreign, or does not fit its configuration.
    """
    tensors, metadata = read_safetensors(path, FORMAT)
    model = PixelCNN(parse_config(metadata, path))
    targets: dict[str, Tensor] = {}
    for name, convolution in model.convolutions():
        targets[f"{name}.weight"] = convolution.v
        targets[f"{name}.bias"] = convolution.b
    for name, parameter in model.head.named_parameters():
        targets[f"head.{name}"] = parameter
    copy_tensors(targets, tensors, path)
    for _, convolution in model.convolutions():
        convolution.set_weight(convolution.v)
    return model.eval()
