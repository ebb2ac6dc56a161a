"""What commands print on standard output."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def print_json(facts: Any) -> None:
    """One JSON document on standard output. Paths are written as text."""
    print(json.dumps(facts, indent=1, default=os.fspath), flush=True)


def print_files(paths: list[Path], *, as_json: bool) -> None:
    """The files that a command has written: a line each, or as JSON."""
    if as_json:
        print_json({"files": paths})
    else:
        print("\n".join(map(str, paths)))
