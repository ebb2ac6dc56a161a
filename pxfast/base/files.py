"""Files are written whole or not at all, and never over an existing one unasked."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def refuse_existing(path: str | os.PathLike[str], *, force: bool) -> None:
    """Raise FileExistsError when ``path`` exists and ``force`` is off."""
    if not force and os.path.lexists(path):
        raise FileExistsError(f"{os.fspath(path)} exists already; pass --force (force=True) to replace it")


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; on success it is flushed to disk and renamed, on failure removed.

    A reader sees the old file or the new one, never a part of it, even after a power cut or kill -9.
    """
    target = Path(path)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's files are private; an output should be like any other
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
