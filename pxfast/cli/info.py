"""``pxfast info``."""

from __future__ import annotations

import json

from .options import JsonOption


def info(as_json: JsonOption = False) -> None:
    """Print versions, engines, CPU features and shipped models."""
    from ..engines.info import collect, describe

    facts = collect()
    print(json.dumps(facts, indent=2) if as_json else describe(facts))
