"""Measuring the tiles of the Triton kernels on the GPU at hand; see ``pxfast.kernels.tiles``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..base.environment import tiles_file
from ..base.files import check_output_folder, whole_file
from . import triton as engine
from .schedule import Schedule

if TYPE_CHECKING:
    from ..kernels.launch import Tile


def candidates(kind: str, architecture: str) -> list[tuple[int, int, int, int, int]]:
    """The tiles that are tried for a kind of step on an architecture, as the fields of a ``Tile``."""
    amd = architecture.startswith("gfx")  # 64 KiB of shared memory, and a pipeline of at most two stages
    if kind.startswith("fp32"):  # no matrix cores on NVIDIA: small tiles, else registers spill
        return list(itertools.product((32, 64), (32, 64), (16, 32), (4, 8), (1, 2) if amd else (2, 3)))
    m = (64, 128) if "row" in kind else (32, 64, 128)
    return list(itertools.product(m, (32, 64), (64, 128), (4, 8), (1, 2) if amd else (3, 4)))


def check_tunable() -> None:
    """RuntimeError where there is no GPU to measure on; PermissionError where the result can't be kept."""
    reason = engine.unavailable()
    if reason is not None:
        raise RuntimeError(f"pxfast tune measures on a GPU, and none can be used here: {reason}")
    check_output_folder(tiles_file().parent)


def tune(
    schedule: Schedule, *, images: int = 1024, precision: str = "bf16", log: Callable[[str], None] = print
) -> Path:
    """Time the candidates of every kind of step of the schedule, and keep the fastest in ``tiles.tiles_file()``.

    The file is written after every kind; what it holds for other architectures and kinds stays. log: told a line per
    kind. Returns the file. Raises RuntimeError where there is no GPU, or where none of a kind's tiles fit into it.
    """
    check_tunable()
    from ..kernels.launch import Tile
    from ..kernels.tiles import KINDS, architecture, dump, read_tiles, tiles_for

    path, name = tiles_file(), architecture()
    kept = read_tiles(path)
    best = dict(tiles_for(name))
    for kind in (kind for kind in KINDS if kind.startswith(precision)):
        times = {}
        for tile in dict.fromkeys([best[kind], *(Tile(*fields) for fields in candidates(kind, name))]):
            milliseconds = _time(schedule, {**best, kind: tile}, kind, precision, images)
            if milliseconds is not None:
                times[tile] = milliseconds
        if not times:
            raise RuntimeError(f"none of the tiles of {kind!r} fit into {name}")
        fastest = min(times, key=lambda tile: times[tile])
        before = f"{times[best[kind]]:.3f} ms" if best[kind] in times else "too much for this GPU"
        log(f"{name}, {kind}: {fastest}, {times[fastest]:.3f} ms; before, {best[kind]}: {before}")
        best[kind] = fastest
        kept.setdefault(name, {})[kind] = fastest
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_text(dump(kept))
    return path


def _time(schedule: Schedule, tiles: dict[str, Tile], kind: str, precision: str, images: int) -> float | None:
    """Milliseconds of one launch of every step of the kind; None for tiles that don't fit into the machine."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench_cudagraph

    from .triton_program import Program, Workspace

    device = torch.device("cuda", torch.cuda.current_device())
    workspace = Workspace(Program(schedule, precision, device, tiles), images)
    workspace.show_row(4 % schedule.config.image_size[0])  # in row 0 the taps above the image read nothing
    torch.cuda.synchronize(device)  # it is measured on another stream
    launches = workspace.launches_of(per_row=" row" in kind, gated=kind.endswith("gate"))

    def run() -> None:
        for launch in launches:
            launch.run()

    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            return float(do_bench_cudagraph(run))
    except OutOfResources:
        return None
