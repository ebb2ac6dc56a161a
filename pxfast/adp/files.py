"""Files of score networks: safetensors with the configuration in the metadata. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..base.checks import check_flag, check_instance, check_path, notes_json
from ..base.files import output_files
from ..tensors.safetensors import (
    floating_state,
    load_network,
    metadata_record,
    read_header,
    read_notes,
    stored_tensors,
)
from ..tensors.shipped import Shipped
from .score_network import ScoreNetwork, ScoreNetworkConfig

FORMAT = "pxfast-score-network"
Scorer = ScoreNetwork | str | os.PathLike[str]


def save_score_network(
    network: ScoreNetwork, path: str | os.PathLike[str], *, notes: dict[str, Any] | None = None, force: bool = False
) -> None:
    """Write a score network's file, whole or not at all: the convolutions' weights in bf16, all else in fp32.

    notes: JSON-able facts kept in the metadata (how it was trained, its measured loss). Raises FileExistsError when
    ``path`` exists and ``force`` is off.
    """
    check_instance("network", network, ScoreNetwork)
    check_path("path", path)
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(network.config)),
        "notes": notes_json(notes),
    }
    with output_files(path, force=check_flag("force", force)) as (temporary,):
        save_file(stored_tensors(network), temporary, metadata=metadata)


def read_score_metadata(name_or_path: str | os.PathLike[str]) -> tuple[ScoreNetworkConfig, dict[str, Any]]:
    """Configuration and notes of a score network's file. Raises what :func:`load_score_network` raises."""
    path = SHIPPED.path(name_or_path)
    metadata = read_header(path, FORMAT).metadata
    return parse_score_config(metadata, path), read_notes(metadata, path)


def parse_score_config(metadata: dict[str, str], path: str | os.PathLike[str]) -> ScoreNetworkConfig:
    """The configuration in a file's metadata. ValueError names the file and what is wrong."""
    return metadata_record(ScoreNetworkConfig, metadata, path, "configuration of a score network")


def _read(path: Path) -> ScoreNetwork:
    header = read_header(path, FORMAT)
    config = parse_score_config(header.metadata, path)
    network = load_network(header, 1, lambda: ScoreNetwork(config), floating_state)
    return network.eval().to(memory_format=torch.channels_last)  # on a CPU nearly twice as fast


SHIPPED = Shipped(
    "score network",
    ScoreNetwork,
    {"cifar10": "cifar10-score.safetensors", "fashion-mnist": "fashion-mnist-score.safetensors"},
    _read,
    lambda path: read_score_metadata(path)[0],
)


def load_score_network(name_or_path: str | os.PathLike[str]) -> ScoreNetwork:
    """A shipped score network by name ('fashion-mnist'), or one from a file: in eval mode, fp32, on the CPU.

    Raises ValueError for an unknown name and for a truncated or foreign file, FileNotFoundError for a path that does
    not exist, TypeError for what is neither. Nothing is unpickled.
    """
    return SHIPPED.load(name_or_path)
