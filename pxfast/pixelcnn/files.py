"""Model files: safetensors with the configuration in the metadata. Nothing is ever unpickled.

What is in them says :meth:`pxfast.PixelCNN.stored_tensors`.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ..base.checks import check_flag, check_instance, check_path, notes_json
from ..base.files import output_files
from ..base.records import shown
from ..tensors.safetensors import metadata_record, read_header, read_notes
from .network import FORMAT, PixelCNN, PixelCNNConfig


def save(
    model: PixelCNN,
    path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.bfloat16,
    notes: dict[str, Any] | None = None,
    force: bool = False,
) -> None:
    """Write ``model`` to the model file ``path``, whole or not at all.

    dtype: torch.bfloat16 or torch.float32, of the weights. notes: JSON-able facts kept in the metadata (how it was
    trained, its measured bits/dim). Raises TypeError for others, and FileExistsError when ``path`` exists and ``force``
    is off.
    """
    check_instance("model", model, PixelCNN)
    check_path("path", path)
    if dtype not in (torch.bfloat16, torch.float32):
        raise TypeError(f"dtype must be torch.bfloat16 or torch.float32, got {shown(dtype)}")
    notes_json(notes)  # its check
    with output_files(path, force=check_flag("force", force)) as (temporary,):
        model.write_file(temporary, dtype=dtype, notes=notes or {})


def read_metadata(path: str | os.PathLike[str]) -> tuple[PixelCNNConfig, dict[str, Any]]:
    """Configuration and notes of a model file, without reading its weights. Raises what :func:`load_model` does."""
    metadata = read_header(path, FORMAT).metadata
    return parse_config(metadata, path), read_notes(metadata, path)


def parse_config(metadata: dict[str, str], path: str | os.PathLike[str]) -> PixelCNNConfig:
    """The configuration in a file's metadata. ValueError names the file and what is wrong."""
    return metadata_record(PixelCNNConfig, metadata, path, "model configuration")


def load_model(path: str | os.PathLike[str]) -> PixelCNN:
    """A PixelCNN in eval mode, fp32, on the CPU, from a model file, with its notes in ``notes``.

    Raises FileNotFoundError, or ValueError when the file is truncated, foreign, or does not fit its configuration.
    Nothing is built before the file's header fits.
    """
    return PixelCNN.read_file(path)
