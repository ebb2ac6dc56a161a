"""The compiled module ``pxfast._C``, where this installation has it."""

from __future__ import annotations

import importlib
from typing import Any

try:
    _C: Any = importlib.import_module("pxfast._C")
    _import_error: str | None = None
except ImportError as _error:  # an install without the compiled module is a normal state: the reference engine works
    _C = None
    _import_error = str(_error)


def unavailable() -> str | None:
    """Why the compiled module can't be used here, or None when it can."""
    if _C is None:
        return f"the compiled module is missing ({_import_error}); build it with `pip install .`"
    return None
