"""What a weights file notes of the training that made it: one part for every run, in order.

A run that begins with another file's weights adds its part to that file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..base.checks import is_number
from ..base.machine import processor_name

FACTS = ("network", "training", "steps", "images_seen", "seconds", "torch", "machine", "compilation", "weights")
TOTALS = ("steps", "images_seen", "seconds")


def training_machine(device: torch.device) -> str:
    """What a process trains on: a GPU's name, or how many threads of which processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' if threads > 1 else ''} of {processor_name()}"


def training_parts(notes: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that a file's notes tell of, the first one first; [] where they tell of none."""
    parts = notes.get("parts")
    if parts is None:
        parts = [{name: notes[name] for name in FACTS if name in notes}]
    return [part for part in parts if isinstance(part, dict) and part] if isinstance(parts, list) else []


def training_notes(part: dict[str, Any], earlier: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The notes of a run, ``part``, that began with what ``earlier`` runs had made: all of them, and their totals."""
    if not earlier:
        return part
    parts = [*earlier, part]
    totals = {name: sum(value for each in parts if is_number(value := each.get(name, 0))) for name in TOTALS}
    return {"parts": parts, **totals}


def training_summary(notes: Mapping[str, Any]) -> str | None:
    """What a file's notes say of its training in one line; None where they say nothing of it."""
    parts = training_parts(dict(notes))
    steps: Any = notes.get("steps")
    seconds: Any = notes.get("seconds")
    if not parts or not is_number(steps) or not is_number(seconds):
        return None
    machines = list(dict.fromkeys(str(part["machine"]) for part in parts if part.get("machine")))
    runs = f"{len(parts)} run{'s' if len(parts) > 1 else ''}"
    where = f", on {'; '.join(machines)}" if machines else ""
    return f"{runs}, {steps:,} steps in {seconds / 3600:.1f} hours{where}"
