"""A store of intermediate results, each under a key made of everything that it depends on.

An entry is a safetensors file named by the SHA-256 of its *recipe*, canonical JSON, which its metadata repeats. Entries
are written whole or not at all and never changed, so a run may be killed at any moment, several runs with other
settings may share a store, and several processes may write to it at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..base.checks import is_number
from ..base.files import whole_file
from ..base.unfinished import remove_all_leftovers
from .safetensors import metadata_json, read_safetensors

FORMAT = "pxfast-store"

Recipe = dict[str, Any]


def canonical(recipe: Recipe) -> str:
    """A recipe as JSON that is the same for equal recipes. ValueError or TypeError for what is no JSON."""
    return json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(*tensors: Tensor) -> str:
    """SHA-256, in hexadecimal, of the types, shapes and values of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a recipe gave: tensors by name, and the seconds that computing them took."""

    tensors: dict[str, Tensor]
    seconds: float


class Store:
    """The entries in a folder, which is made when the first one is written."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder: Path = Path(folder)

    def path(self, recipe: Recipe) -> Path:
        """Where a recipe's entry lies or will lie."""
        key = hashlib.sha256(canonical(recipe).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def remove_leftovers(self) -> None:
        """Remove what killed processes left unfinished, of any recipe."""
        for folder in self.folder.glob("??"):
            remove_all_leftovers(folder)

    def read(self, recipe: Recipe) -> Entry | None:
        """A recipe's entry, or None when there is none, or when its file is damaged or another recipe's."""
        try:
            tensors, metadata = read_safetensors(self.path(recipe), FORMAT)
            seconds = metadata_json(metadata, "seconds", self.path(recipe))
        except (OSError, ValueError):
            return None
        same = metadata.get("recipe") == canonical(recipe) and metadata.get("digest") == _digest(tensors)
        if not same or not is_number(seconds):
            return None
        return Entry(tensors, float(seconds))

    def write(self, recipe: Recipe, entry: Entry) -> None:
        """Keep a recipe's entry; a damaged one is replaced."""
        path = self.path(recipe)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in entry.tensors.items()}
        metadata = {
            "format": FORMAT,
            "recipe": canonical(recipe),
            "digest": _digest(tensors),
            "seconds": repr(entry.seconds),
        }
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest(*(tensors[name] for name in sorted(tensors)))
