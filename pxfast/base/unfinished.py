"""Unfinished work: a folder beside an output, ``.NAME.unfinished-`` and 16 digits, for what is to become that output.

A process holds a lock in it as long as it lives. The next one that writes the same output removes those of dead ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from .locks import Lock

LOCK = "lock"  # in a folder of unfinished work
REPLACED = "replaced"  # there too: the folder in whose place a new one goes
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what only a write can meet
LONGEST = 200  # bytes of a name in a hidden name


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what killed processes left of an output that they were writing, but nothing of one that lives."""
    target = Path(path)
    for folder in unfinished(target):
        try:
            lock = Lock(folder / LOCK)
        except OSError:  # alive, or not this user's
            continue
        try:
            if lock.certain:
                if (folder / REPLACED).is_dir() and not os.path.lexists(target):  # killed between two renames
                    os.rename(folder / REPLACED, target)
                _remove_workplace(folder, lock)
        except OSError:
            lock.release()


def remove_all_leftovers(folder: Path, names: Callable[[str], bool] = lambda name: True) -> None:
    """As :func:`remove_leftovers`, of all the outputs in a folder whose name ``names`` accepts."""
    with contextlib.suppress(OSError):
        for hidden in os.listdir(folder):
            match = re.fullmatch(r"\.(.+)\.unfinished-[0-9a-f]{16}", hidden)
            if match is not None and names(match[1]):
                remove_leftovers(folder / match[1])


def short_name(name: str) -> str:
    """A name that is not too long to become part of another one; equal for equal names."""
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST:
        return name
    return os.fsdecode(encoded[: LONGEST // 2]) + hashlib.sha256(encoded).hexdigest()[:16]


def unfinished(target: Path) -> list[Path]:
    """The folders of unfinished work on an output, of dead and of living processes."""
    pattern = re.compile(re.escape(f".{short_name(target.name)}.unfinished-") + "[0-9a-f]{16}")
    try:
        names = os.listdir(target.absolute().parent)
    except OSError:
        return []
    found = [target.with_name(name) for name in names if pattern.fullmatch(name)]
    return [folder for folder in found if folder.is_dir() and not folder.is_symlink()]


@contextlib.contextmanager
def workplace(target: Path) -> Iterator[tuple[Path, Lock]]:
    """A locked folder beside ``target`` for its temporary file, after those of dead processes are removed."""
    remove_leftovers(target)
    while True:
        folder = target.with_name(f".{short_name(target.name)}.unfinished-{secrets.token_hex(8)}")
        with speaking_of(target, folder):
            folder.mkdir(0o700)
            try:
                lock = Lock(folder / LOCK)
                break
            except (FileNotFoundError, BlockingIOError):  # another process took it for a dead one's
                continue
            except OSError:
                folder.rmdir()
                raise
    try:
        yield folder, lock
    finally:
        _remove_workplace(folder, lock)


def _remove_workplace(folder: Path, lock: Lock) -> None:
    for name in os.listdir(folder) if folder.is_dir() else ():
        if name != LOCK:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    lock.release()
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def speaking_of(target: Path, place: Path, *, only: Path | None = None) -> Iterator[None]:
    """Errors of writing name the output, not a temporary file in ``place`` or no file at all.

    only: a temporary file that must be there already for an error that names none to be about it.
    """
    try:
        yield
    except Exception as error:
        number = _system_error(error)
        named = getattr(error, "filename", None)
        if named is None:
            about = number in FULL and (only is None or only.exists())
        else:
            about = isinstance(named, str | bytes) and os.fsdecode(named).startswith(os.fspath(place))
        if number is None or not about:
            raise
        raise OSError(number, os.strerror(number), os.fspath(target)) from error


def _system_error(error: Exception) -> int | None:
    """The number of the system's error that an exception is of; None: of none."""
    if isinstance(error, OSError):
        return error.errno
    safetensors = sys.modules.get("safetensors")
    if safetensors is not None and isinstance(error, safetensors.SafetensorError):
        number = re.search(r"\(os error (\d+)\)", str(error))
        return int(number[1]) if number else None
    return None
