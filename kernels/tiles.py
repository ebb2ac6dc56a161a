"""The tiles of the matrix products: a recorded choice per architecture, so that no user's first call searches for one.

A step's kind is its precision, whether it runs per row or per pixel, and whether it is gated (two products at once).
``TILES`` holds the choices; ``pxfast tune`` measures others on the GPU at hand and keeps the best in a file of the
user's (``pxfast.base.environment.tiles_file``), which then goes first. A tile decides the order of a sum, so results
may differ in near-ties between machines with other tiles, as they do between engines; on one machine they don't.

The entries follow from the shapes and have been compared with no others; with them an H200 makes 2,680 images/s of the
paper's CIFAR-10 network (docs/gpu.md).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import torch

from ..base.environment import tiles_file
from ..base.reading import parse_json, read_text
from ..base.records import record, shown
from .launch import INTERPRETED, Tile

FORMAT = "pxfast-tiles"
KINDS = tuple(
    f"{precision} {where}{gate}"
    for precision in ("bf16", "fp32")
    for where in ("row", "pixel")
    for gate in ("", " gate")
)

_DEFAULT = {
    "bf16 row": Tile(128, 64, 64, 8, 3),
    "bf16 row gate": Tile(128, 32, 64, 8, 3),
    "bf16 pixel": Tile(64, 32, 64, 4, 4),
    "bf16 pixel gate": Tile(64, 32, 64, 4, 4),
    "fp32 row": Tile(64, 32, 16, 4, 3),
    "fp32 row gate": Tile(32, 32, 16, 4, 3),
    "fp32 pixel": Tile(32, 32, 16, 4, 3),
    "fp32 pixel gate": Tile(32, 32, 16, 4, 3),
}
TILES: dict[str, dict[str, Tile]] = {
    "default": _DEFAULT,
    # no asynchronous copies as deep as NVIDIA's, and 64 KB of shared memory
    "gfx942": {kind: dataclasses.replace(tile, num_stages=2) for kind, tile in _DEFAULT.items()},
    "interpreter": dict.fromkeys(KINDS, Tile(128, 16, 16)),
}


@dataclasses.dataclass(frozen=True)
class TilesFile:
    """What is in a file of choices: by the architecture's name, then by the step's kind.

    ValueError for numbers that no kernel is made for.
    """

    format: str
    tiles: dict[str, dict[str, Tile]]

    def __post_init__(self) -> None:
        for tile in (tile for kinds in self.tiles.values() for tile in kinds.values()):
            sides = (tile.block_m, tile.block_n, tile.block_k, tile.num_warps)
            known = all(1 <= side <= 1024 and side & (side - 1) == 0 for side in sides)
            if not known or not 1 <= tile.num_stages <= 16:
                raise ValueError(f"a tile has powers of two up to 1024 and 1..16 stages, got {tile}")


def architecture() -> str:
    """'interpreter', or that of the current GPU as Triton's targets are called: 'sm_90', 'gfx942'."""
    if INTERPRETED:
        return "interpreter"
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    if torch.version.hip:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def read_tiles(path: Path) -> dict[str, dict[str, Tile]]:
    """The choices in a file; none where there is no file. ValueError for a file that is not what ``dump`` writes."""
    if not path.is_file():
        return {}
    try:
        content = record(TilesFile, parse_json(read_text(path), "it"), "it")
        if content.format != FORMAT:
            raise ValueError("its format is another")
        for kinds in content.tiles.values():
            if not set(kinds) <= set(KINDS):
                raise ValueError(f"unknown kinds of steps: {shown(sorted(set(kinds) - set(KINDS)))}")
    except ValueError as error:
        raise ValueError(f"expected {path} to be a file that `pxfast tune` wrote: {error}") from error
    return content.tiles


def dump(tiles: dict[str, dict[str, Tile]]) -> str:
    """The choices as the text of a file."""
    plain = {name: {kind: dataclasses.asdict(tile) for kind, tile in kinds.items()} for name, kinds in tiles.items()}
    return json.dumps({"format": FORMAT, "tiles": plain}, indent=2) + "\n"


def tiles_for(name: str) -> dict[str, Tile]:
    """The tile of every kind of step on the architecture ``name``, by the file of tiles as it is now."""
    path = tiles_file()
    try:
        found = path.stat()
    except OSError:
        kept = {}
    else:
        kept = _read_once(path, found.st_mtime_ns, found.st_size)
    return {**_DEFAULT, **TILES.get(name, {}), **kept.get(name, {})}


@functools.lru_cache(maxsize=4)
def _read_once(path: Path, changed: int, size: int) -> dict[str, dict[str, Tile]]:
    """The choices in a file that was ``changed`` then."""
    return read_tiles(path)
