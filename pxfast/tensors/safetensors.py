"""Tensors in and out of safetensors files. Nothing is ever unpickled."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn


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
