"""Images: the one door for them, files, and data sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .datasets import DATASETS, load_dataset

__all__ = ["DATASETS", "load_dataset"]


def __getattr__(name: str) -> Any:
    """The names above when they are first asked for: purifying needs nothing that reads files of images."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import datasets

    value = getattr(datasets, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
