"""The compiled module ``pxfast._C``, where this installation has it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from .sources import digest_of

ROOT = Path(__file__).resolve().parents[2]  # of a checkout; of an installation, the folder of all packages


def load(root: Path) -> tuple[Any, str | None]:
    """The compiled module, or None and why it can't be used. root: what has ``csrc/`` if this is a checkout."""
    try:
        module: Any = importlib.import_module("pxfast._C")
    except ImportError as error:  # an install without it is a normal state: the reference engine works
        if isinstance(error, ModuleNotFoundError) and error.name == "pxfast._C":
            return None, f"the compiled module is missing ({error}); build it with `pip install .`"
        return None, f"the compiled module is there, but does not load ({error}); build it here with `pip install .`"
    if (root / "csrc" / "bindings.cpp").is_file() and (root / "setup.py").is_file():
        try:
            here = digest_of(root / "csrc")
        except OSError:  # such as of another user
            return module, None
        if getattr(module, "sources", None) != here:
            return None, (
                "the compiled module was built from other sources than csrc/ has now; build it anew with "
                "`pip install -e .`"
            )
    return module, None


_C, _problem = load(ROOT)


def unavailable() -> str | None:
    """Why the compiled module can't be used here, or None when it can."""
    return _problem
