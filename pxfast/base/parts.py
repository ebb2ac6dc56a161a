"""Long work in parts, which are kept in a folder beside the output until that is written, and survive kill -9."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import AnyPath, file_digest, remove_folder, whole_file
from .reading import parse_json, read_text
from .unfinished import remove_leftovers

SETTINGS = "settings.json"
OUTPUTS = "outputs.json"


def parts_path(out: AnyPath) -> Path:
    """The folder beside ``out`` that keeps what is finished."""
    return Path(f"{os.fspath(out)}.parts")


def has_parts(out: AnyPath) -> bool:
    """Whether there are parts of ``out``, after what killed runs left unfinished of them is removed."""
    remove_leftovers(parts_path(out))
    return parts_path(out).exists()


class Parts:
    """The finished parts of the work that makes ``out``: files in ``folder``, which that work names and writes.

    settings: everything that the parts depend on, JSON-able.
    """

    def __init__(self, out: AnyPath, settings: dict[str, Any]) -> None:
        self.folder: Path = parts_path(out)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def open(self, *, force: bool) -> None:
        """Make the folder, if need be. ValueError when it is of a run with other settings, unless ``force``.

        The caller has claimed the output.
        """
        if self.folder.exists():
            before = _read(self.folder / SETTINGS)
            if before is not None:
                different = sorted(
                    key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key)
                )
                if not different:
                    return
                if not force:
                    raise ValueError(
                        f"{self.folder} has parts of a run with other settings ({', '.join(different)}); pass --force "
                        "(force=True) to drop them, or write elsewhere"
                    )
            foreign = [] if before is not None else [n for n in os.listdir(self.folder) if not n.startswith(".")]
            if foreign:
                raise FileExistsError(f"{self.folder} holds {min(foreign)}, which is no part of a run; write elsewhere")
            remove_folder(self.folder)  # another run's, or killed before its settings were written
        self.folder.mkdir()
        _write(self.folder / SETTINGS, self.settings)

    def promise(self, outputs: Sequence[Path]) -> None:
        """Note what is about to be published: files, or folders of files, that have the names of the outputs."""
        _write(self.folder / OUTPUTS, {path.name: _digest(path) for path in outputs})

    def published(self, outputs: Sequence[Path]) -> bool:
        """Whether those of the outputs that exist are what a killed run of the same settings has published.

        What killed runs left besides the parts is removed.
        """
        remove_leftovers(self.folder)
        if _read(self.folder / SETTINGS) != self.settings:
            return False
        promised = _read(self.folder / OUTPUTS)
        there = [path for path in outputs if os.path.lexists(path)]
        return promised is not None and all((promised.get(path.name) or "none") == _digest(path) for path in there)

    def remove(self) -> None:
        """The work is done, or nothing of it was."""
        remove_folder(self.folder)


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, or of a folder's files and their names; None for anything else."""
    if path.is_file():
        return file_digest(path)
    if not path.is_dir() or not all(file.is_file() for file in path.iterdir()):
        return None
    names = sorted(file.name for file in path.iterdir())
    text = json.dumps([[name, file_digest(path / name)] for name in names])
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        values = parse_json(read_text(path), str(path))
        return values if isinstance(values, dict) else None
    return None


def _write(path: Path, values: dict[str, Any]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
