"""``pxfast info``."""

from __future__ import annotations

from .options import JsonOption


def info(as_json: JsonOption = False) -> None:
    """Print versions, engines, CPU features and shipped models."""
    from ..engines.info import collect, describe
    from .output import print_json

    facts = collect()
    if as_json:
        print_json(facts)
    else:
        print(describe(facts))
