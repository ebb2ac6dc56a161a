"""Small tables of what this machine was found to be or to take: JSON files in the user's folder of caches.

They may be deleted at any time. A file that is not there, or not what it should be, holds nothing, and where nothing
can be written, nothing is kept.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .files import whole_file
from .reading import parse_json, read_text


def read_kept(path: Path, table_format: str, field: str, good: Callable[[Any], bool]) -> dict[str, Any]:
    """The table that ``write_kept`` wrote. good: whether something is a value of it; with one that isn't, none is."""
    try:
        content = parse_json(read_text(path), "it")
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.keys() != {"format", field} or content["format"] != table_format:
        return {}
    table = content[field]
    return table if isinstance(table, dict) and all(map(good, table.values())) else {}


def write_kept(path: Path, table_format: str, field: str, table: Mapping[str, Any]) -> None:
    """Keep a table, whole."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps({"format": table_format, field: table}, indent=2) + "\n", encoding="utf-8")
