"""Model files: safetensors with the configuration in the metadata. Nothing is ever unpickled.

A model file holds, per convolution, the folded weight (bf16 or fp32) and the bias (fp32), and the head's own
parameters. Folding loses nothing: weight normalisation is rebuilt as v = weight, g = |weight|.
"""

from __future__ import annotations

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .files import whole_file
from .pixelcnn import PixelCNN, PixelCNNConfig

FORMAT = "pxfast-pixelcnn"
SHIPPED = {"cifar10": "cifar10.safetensors", "fashion-mnist": "fashion-mnist.safetensors"}


def model_tensors(model: PixelCNN, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a model file; weights in ``dtype``, biases in fp32."""
    tensors = {}
    for name, convolution in model.convolutions():
        tensors[f"{name}.weight"] = convolution.weight().detach().to(dtype)
        tensors[f"{name}.bias"] = convolution.b.detach().float()
    for name, parameter in model.head.named_parameters():
        tensors[f"head.{name}"] = parameter.detach().to(dtype)
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def save_model(
    model: PixelCNN,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write a model file, whole or not at all.

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


def read_safetensors(path: str | os.PathLike[str], *formats: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one of pxfast's files, of one of these formats.

    ValueError names the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format", "no format")
            if found not in formats:
                raise ValueError(
                    f"{path} is a safetensors file of another kind: expected {formats[0]!r}, found {found!r}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error})") from None


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


@torch.no_grad()
def copy_tensors(targets: dict[str, Tensor], tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Copy a file's tensors into a network's. ValueError, naming ``path``, when they do not fit or are not finite."""
    if tensors.keys() != targets.keys():
        odd = sorted(tensors.keys() ^ targets.keys())[:3]
        raise ValueError(f"{path} does not fit its configuration: missing or unexpected tensors, such as {odd}")
    for name, target in targets.items():
        if tensors[name].shape != target.shape:
            raise ValueError(
                f"{path}: {name} should have shape {tuple(target.shape)}, found {tuple(tensors[name].shape)}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{path}: {name} has values that are not finite")
        target.copy_(tensors[name])


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as files other than a PixelCNN's hold it: in bf16, but fp32 where there is one dimension.

    What is not floating point, such as BatchNorm's counters of batches seen, stays out.
    """
    tensors = {}
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            dtype = torch.bfloat16 if value.dim() > 1 else torch.float32
            tensors[name] = value.detach().to("cpu", dtype).contiguous()
    return tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], origin: str | os.PathLike[str]) -> None:
    """Copy ``stored_tensors`` into a module. ValueError, naming ``origin``, when they do not fit."""
    targets = {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
    copy_tensors(targets, tensors, origin)


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


def shipped_path(name: str) -> Path:
    """Where the model shipped under ``name`` lies. ValueError lists the known names."""
    if name not in SHIPPED:
        raise ValueError(f"unknown model {name!r}; shipped models: {', '.join(sorted(SHIPPED))}; or pass a file's path")
    return Path(str(resources.files("pxfast") / "assets" / SHIPPED[name]))


def load(name_or_path: str | os.PathLike[str]) -> PixelCNN:
    """Load a shipped model by name ('fashion-mnist') or a model file by path.

    Returns a PixelCNN in eval mode, fp32, on the CPU. Raises ValueError for an unknown name and for a truncated or
    foreign file, FileNotFoundError for a path that does not exist. Nothing is unpickled.
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"expected a model name or a path, got {type(name_or_path).__name__}")
    text = os.fspath(name_or_path)
    if text in SHIPPED:
        return load_model(shipped_path(text))
    if os.path.exists(text) or os.sep in text or text.endswith(".safetensors"):
        return load_model(text)
    return load_model(shipped_path(text))
