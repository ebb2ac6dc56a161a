"""Files of score networks: safetensors with the configuration in the metadata. Nothing is ever unpickled."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .files import whole_file
from .score_network import ScoreNetwork, ScoreNetworkConfig
from .weights import fill, read_safetensors, stored_tensors

FORMAT = "pxfast-score-network"
SHIPPED = {"cifar10": "cifar10-score.safetensors", "fashion-mnist": "fashion-mnist-score.safetensors"}

Scorer = ScoreNetwork | str | os.PathLike[str]


def save_score_network(
    network: ScoreNetwork, path: str | os.PathLike[str], *, notes: dict[str, Any] | None = None
) -> None:
    """Write a score network's file, whole or not at all: the convolutions' weights in bf16, all else in fp32.

    notes: JSON-able facts kept in the metadata (how it was trained, its measured loss).
    """
    metadata = {
        "format": FORMAT,
        "config": json.dumps(dataclasses.asdict(network.config)),
        "notes": json.dumps(notes or {}),
    }
    with whole_file(path) as temporary:
        save_file(stored_tensors(network), temporary, metadata=metadata)


def score_network_path(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a shipped score network's name, or of a path. ValueError lists the known names."""
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"expected a score network's name or a path, got {type(name_or_path).__name__}")
    text = os.fspath(name_or_path)
    if text in SHIPPED:
        return Path(str(resources.files("pxfast") / "assets" / SHIPPED[text]))
    if os.path.exists(text) or os.sep in text or text.endswith(".safetensors"):
        return Path(text)
    raise ValueError(
        f"unknown score network {text!r}; shipped ones: {', '.join(sorted(SHIPPED))}; or pass a file's path"
    )


def read_score_metadata(name_or_path: str | os.PathLike[str]) -> tuple[ScoreNetworkConfig, dict[str, Any]]:
    """Configuration and notes of a score network's file. Raises what :func:`load_score_network` raises."""
    path = score_network_path(name_or_path)
    metadata = read_safetensors(path, FORMAT)[1]
    return parse_score_config(metadata, path), json.loads(metadata.get("notes", "{}"))


def parse_score_config(metadata: dict[str, str], path: str | os.PathLike[str]) -> ScoreNetworkConfig:
    try:
        return ScoreNetworkConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: bad configuration of a score network: {error!r}") from None


def load_score_network(name_or_path: str | os.PathLike[str]) -> ScoreNetwork:
    """A shipped score network by name ('fashion-mnist'), or one from a file: in eval mode, fp32, on the CPU.

    Raises ValueError for an unknown name and for a truncated or foreign file, FileNotFoundError for a path that does
    not exist. Nothing is unpickled.
    """
    path = score_network_path(name_or_path)
    tensors, metadata = read_safetensors(path, FORMAT)
    network = ScoreNetwork(parse_score_config(metadata, path))
    fill(network, tensors, path)
    return network.eval().to(memory_format=torch.channels_last)  # on a CPU nearly twice as fast


_load_shipped = functools.cache(load_score_network)


@functools.cache
def _shipped_by_shape() -> dict[tuple[int, int, int], str]:
    configs = {name: read_score_metadata(name)[0] for name in SHIPPED if score_network_path(name).is_file()}
    return {(config.channels, *config.image_size): name for name, config in configs.items()}


def resolve_score_network(network: Scorer | None) -> ScoreNetwork | None:
    """A score network given by name or path, loaded; shipped ones only once. A network or None is returned as it is.

    Raises TypeError for anything else, and what :func:`load_score_network` raises.
    """
    if network is None or isinstance(network, ScoreNetwork):
        return network
    if isinstance(network, str) and network in SHIPPED:
        return _load_shipped(network)
    if isinstance(network, (str, os.PathLike)):
        return load_score_network(network)
    raise TypeError(f"expected a ScoreNetwork, a shipped one's name, a path or None, got {type(network).__name__}")


def score_network_for(network: Scorer | None, image_shape: tuple[int, ...]) -> ScoreNetwork:
    """The score network for images of shape (C, H, W): the given one, or with None the shipped one of that shape.

    Raises ValueError when the given one was trained on another shape, or when none is shipped for this one.
    """
    resolved, image_shape = resolve_score_network(network), tuple(image_shape)
    if resolved is None:
        by_shape = _shipped_by_shape()
        if image_shape not in by_shape:
            known = ", ".join(f"{shape} ({name})" for shape, name in by_shape.items()) or "none"
            raise ValueError(
                f"no shipped score network takes images of shape {image_shape}; shipped: {known}; "
                "pass model=, a ScoreNetwork or the path of its file"
            )
        return _load_shipped(by_shape[image_shape])
    expected = (resolved.config.channels, *resolved.config.image_size)
    if image_shape != expected:
        raise ValueError(f"the score network takes images of shape (C, H, W) = {expected}, got {image_shape}")
    return resolved
