"""What tells one state of the compiled module's sources from another. setup.py runs this file alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

ENDINGS = {".cpp", ".h", ".cu", ".cuh"}


def digest_of(folder: Path) -> str:
    """A hash of the names and the contents of all sources under ``folder``."""
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.suffix in ENDINGS}
    digest = hashlib.sha256()
    for name in sorted(names):
        content = names[name].read_bytes()
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
