"""Where the GPU's measurements go: rows that are kept the moment they are known, and a lock for what is timed.

Environment: OUT, the folder of rows (default: bench/results).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

failures: list[dict[str, Any]] = []  # of this process
ROWS, LOG = "gpu-rows.jsonl", "gpu-log.txt"


def out_folder() -> Path:
    """The folder of rows, which is made if need be."""
    folder = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep(row: dict[str, Any]) -> None:
    """Append a row to the file and print it. One write of one line: a kill leaves whole lines, whoever else writes."""
    line = (json.dumps(row) + "\n").encode()
    descriptor = os.open(out_folder() / ROWS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)
    print(line.decode(), end="", flush=True)


@contextlib.contextmanager
def kept(**row: Any) -> Iterator[dict[str, Any]]:
    """A row to fill in; an error on the way becomes its last entry, and what follows goes on.

    A row with an error, with images that did not pass or with some that differ, is among the ``failures``.
    """
    try:
        yield row
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {error}"[:600]
    keep(row)
    if "error" in row or row.get("passed") is False or row.get("differing"):
        failures.append(row)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, none where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Nothing else is timed meanwhile: whoever is in here is waited for."""
    with open(Path(tempfile.gettempdir()) / "pxfast-gpu.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
