"""The door of what is read: regular files alone, text of a bounded size, and JSON of a bounded depth."""

from __future__ import annotations

import collections
import io
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from .checks import check_path

LARGEST_TEXT = 16 << 20  # bytes: a table of results has a few kB
DEEPEST = 100  # levels of lists and tables in each other


def regular_file(path: str | os.PathLike[str]) -> Path:
    """``path``, where a regular file lies there.

    FileNotFoundError where there is nothing; ValueError for a folder, a pipe, a socket or a device, which may never
    come to an end.
    """
    path = check_path("a file's path", path)
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"no such file: {path}") from None
    except ValueError as error:  # a null character
        raise ValueError(f"{os.fspath(path)!r} is no path of a file: {error}") from None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        found = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
        raise ValueError(f"{path}: expected a file, found {found}")
    return path


class BoundedFile(io.BufferedReader):
    """A regular file, open to be read, that takes no more memory than there is left of it to read.

    Python makes room for as many bytes as are asked for, and parsers ask for what a damaged file says.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises what :func:`regular_file` does."""
        super().__init__(io.FileIO(os.fspath(regular_file(path))))
        self.bytes: int = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.bytes - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def read_text(path: str | os.PathLike[str], largest: int = LARGEST_TEXT) -> str:
    """The text of a regular file, in UTF-8. ValueError names it when it is something else, or larger than ``largest``.

    Raises what :func:`regular_file` does.
    """
    with BoundedFile(path) as file:
        if file.bytes > largest:
            raise ValueError(f"{path}: expected text of at most {largest >> 10} KiB, found {file.bytes >> 10} KiB")
        data = file.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None


def parse_json(text: str, where: str, *, finite: bool = False) -> Any:
    """What JSON says. ValueError, beginning with ``where``, for what is none, or is more than 100 levels deep.

    A table may name nothing twice. finite: refuse NaN and the infinities too, which JSON has not and Python writes.
    """

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"JSON has no {constant}")

    try:
        value = json.loads(text, parse_constant=refuse if finite else None, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    check_depth(value, where)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"{counts.most_common(1)[0][0][:60]!r} is there twice")
    return table


def check_depth(value: object, where: str) -> None:
    """ValueError, beginning with ``where``, for lists and tables that are more than 100 levels deep.

    What walks through them calls itself once a level.
    """
    level = [value]
    for _ in range(DEEPEST):
        level = [child for each in level for child in _children(each) if isinstance(child, (dict, list))]
        if not level:
            return
    raise ValueError(f"{where} has lists and tables more than {DEEPEST} levels deep")


def _children(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
