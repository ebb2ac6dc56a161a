"""Ways of the CUDA engine to divide images among a GPU's blocks. None of them changes a bit, which is held against all.

By itself the engine spreads images over all multiprocessors, so that few images make teams of one image each. These are
what larger batches and other GPUs make: all blocks in one team, a third of them in each of three, teams of one block.
"""

from __future__ import annotations

from typing import Any

from . import compiled
from .settings import DecodeSettings


def images_of(multiprocessors: int) -> int:
    """Images that give teams of one block two or three each, three teams two tiles of pixels each, and none evenly."""
    return 2 * multiprocessors + 20


def plans(multiprocessors: int, clusters: bool) -> list[DecodeSettings]:
    """Either order in teams of one block, of a third of the GPU's, of all; and in clusters where the GPU has them."""
    ways: list[tuple[int | None, bool]] = [
        (team, False) for team in sorted({1, max(1, multiprocessors // 3), multiprocessors})
    ]
    if clusters:
        ways.append((None, True))  # whose size the engine knows
    return [
        DecodeSettings(order=order, team=team, clusters=cluster)
        for order in ("sequential", "speculative")
        for team, cluster in ways
    ]


def plans_of(device: int) -> tuple[int, list[DecodeSettings]]:
    """How many images to hold against each other on a GPU, by its number, and in which ways."""
    gpu: Any = compiled._C.cuda_device(device)
    return images_of(gpu.multiprocessors), plans(gpu.multiprocessors, gpu.clusters > 0)


def described(plan: DecodeSettings) -> str:
    """A plan in a few words."""
    team = "the engine's choice" if plan.team is None else f"teams of {plan.team}"
    return f"{plan.order}, {team}{', clusters' if plan.clusters else ''}"
