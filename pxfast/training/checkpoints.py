"""Checkpoints: one safetensors file, or beyond 16 MiB an index and shards of at most 15 MB each.

The index is a safetensors file without tensors at the checkpoint's own path; it names its shards, which lie beside it
and are called ``STEM.a-00001-of-00058.safetensors`` or ``STEM.b-...``. A checkpoint is written to the letter that the
present index does not use, shards first and index last, each file whole or not at all, and only then are the old
letter's shards removed: whenever a run is killed, the path holds the old checkpoint or the new one, complete.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..base.files import whole_file
from ..base.reading import regular_file
from ..base.records import shown
from ..base.unfinished import remove_all_leftovers
from ..tensors.safetensors import metadata_json, metadata_table, read_header, read_safetensors, read_unchanged

SINGLE_FILE_BYTES = 16 << 20  # as much as a small model's takes
SHARD_BYTES = 15_000_000
HEADER_BYTES = 512  # more than a shard's own metadata, or a tensor's name, dtype, shape and offsets, take


def write_checkpoint(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors, of any device and layout, and metadata that names its ``format``."""
    if sum(tensor.nbytes + HEADER_BYTES for tensor in tensors.values()) <= SINGLE_FILE_BYTES:
        _save(path, tensors, metadata)
        _remove_shards(path, keep=())
        return
    shards = list(_shards(tensors))
    letter = "b" if _letter(path, metadata["format"]) == "a" else "a"
    token = secrets.token_hex(8)  # tells this checkpoint's shards from others of the same names
    names = [f"{path.stem}.{letter}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    try:
        for name, shard in zip(names, shards, strict=True):
            _save(path.with_name(name), shard, {"format": f"{metadata['format']}-shard", "checkpoint": token})
        _save(path, {}, {**metadata, "shards": json.dumps(names), "checkpoint": token})
    except BaseException:  # such as of a full disk, on which shards without an index would only take space
        if _present_shards(path, metadata["format"]) != names:  # Ctrl-C may come just behind the index
            for name in names:
                path.with_name(name).unlink(missing_ok=True)
        raise
    _remove_shards(path, keep=names)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, if there is one: from the first moment on none is there any more."""
    path.unlink(missing_ok=True)
    _remove_shards(path, keep=())


def read_checkpoint(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a checkpoint of that format, in one file or in shards: of one checkpoint,
    though its run may replace it meanwhile.

    FileNotFoundError when the file or a shard of it is missing; ValueError when one is truncated, of another kind or of
    another checkpoint, or when the index names a file that is no shard of its own.
    """
    return read_unchanged(path, lambda: _read(path, expected_format))


def _read(path: Path, expected_format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As :func:`read_checkpoint`, of a checkpoint that nobody replaces."""
    tensors, metadata = read_safetensors(path, expected_format)
    parts: dict[str, list[Tensor]] = {}
    for name in _shard_names(path, metadata):
        shard, its_metadata = read_safetensors(path.with_name(name), f"{expected_format}-shard")
        if "checkpoint" not in metadata or its_metadata.get("checkpoint") != metadata["checkpoint"]:
            raise ValueError(f"{path.with_name(name)} is a shard of another checkpoint than {path}")
        for key, value in shard.items():  # a tensor's pieces come in their order
            parts.setdefault(key.partition(":")[0], []).append(value)
    for name, pieces in parts.items():
        try:
            tensors[name] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        except RuntimeError as error:
            raise ValueError(f"{path}: the pieces of {shown(name)} do not fit together: {error}") from None
    return tensors, metadata


def recorded_setting(path: Path, name: str) -> Any:
    """A setting of the run that left a checkpoint. None where it has no such one, and of what is no checkpoint."""
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            return metadata_table(file.metadata() or {}, "settings", path).get(name)
    except (OSError, ValueError, SafetensorError):
        return None


def check_state(
    tensors: Mapping[str, Tensor], targets: Mapping[str, Tensor], path: Path, optional: Collection[str] = ()
) -> None:
    """ValueError, naming the file, unless a checkpoint's ``tensors`` have the names, shapes and types of ``targets``.

    optional: names of targets that need not be there.
    """
    if odd := (tensors.keys() - targets.keys()) | (targets.keys() - tensors.keys() - set(optional)):
        raise ValueError(f"{path}: missing or unexpected tensors, such as {', '.join(map(shown, sorted(odd)[:3]))}")
    for name, value in tensors.items():
        target = targets[name]
        if value.shape != target.shape or value.dtype != target.dtype:
            raise ValueError(
                f"{path}: {name} should be {target.dtype} {tuple(target.shape)}, found {value.dtype} "
                f"{tuple(value.shape)}"
            )


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    with whole_file(path) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary, metadata=metadata)


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors, in their order, in groups that fit a shard; a larger one is cut along its first dimension."""
    limit = SHARD_BYTES - HEADER_BYTES
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        pieces = {name: tensor}
        if tensor.nbytes + HEADER_BYTES > limit:
            rows = max(1, (limit - HEADER_BYTES) * len(tensor) // tensor.nbytes)
            pieces = {f"{name}:{i}": piece for i, piece in enumerate(tensor.split(rows))}
        for key, piece in pieces.items():
            if shard and size + piece.nbytes + HEADER_BYTES > limit:
                yield shard
                shard, size = {}, 0
            shard[key] = piece
            size += piece.nbytes + HEADER_BYTES
    yield shard


def _present_shards(path: Path, expected_format: str) -> list[str]:
    """The names of the shards of the checkpoint at ``path``; none if it names none, or can't be read."""
    try:
        return _shard_names(path, read_header(path, expected_format).metadata)
    except (FileNotFoundError, ValueError):
        return []


def _letter(path: Path, expected_format: str) -> str:
    """The letter of the shards that the checkpoint at ``path`` names; empty if it names none, or can't be read."""
    names = _present_shards(path, expected_format)
    return names[0].removeprefix(f"{path.stem}.")[0] if names else ""


def _shard_names(path: Path, metadata: Mapping[str, str]) -> list[str]:
    """The names of the files that an index names. ValueError unless they are its own shards', each once."""
    names = metadata_json(metadata, "shards", path, "[]")
    pattern = _pattern(path)
    good = isinstance(names, list) and all(isinstance(name, str) and pattern.fullmatch(name) for name in names)
    if not good or len(set(names)) < len(names):
        raise ValueError(f"{path}: its shards must be the names of its own shards, each once, got {shown(names)}")
    return list(names)


def _pattern(path: Path) -> re.Pattern[str]:
    return re.compile(re.escape(path.stem) + r"\.[ab]-\d{5}-of-\d{5}\.safetensors")


def _remove_shards(path: Path, keep: Collection[str]) -> None:
    pattern = _pattern(path)
    for name in os.listdir(path.parent):
        if pattern.fullmatch(name) and name not in keep:
            path.with_name(name).unlink(missing_ok=True)
    remove_all_leftovers(path.parent, lambda name: pattern.fullmatch(name) is not None)
