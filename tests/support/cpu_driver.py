"""Running the CPU engine's own sources in an emulator of another machine: compiles them, and talks to the program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pxfast.engines.choosers import Chooser, Greedy
from pxfast.engines.compiled import ORDERS

from .building import object_of
from .helpers import made_once
from .program_stream import Stream

HERE = Path(__file__).parent
PROGRAM = "program"
GREEDY = Greedy(16)


def build(
    factory: pytest.TempPathFactory,
    name: str,
    commands: dict[str, list[str]],
    sources: Sequence[str] = (),
    flags: Sequence[str] = ("-static",),
) -> str:
    """The path of the CPU engine as a program that decodes stdin's images, made once for all workers of a run.

    commands: setup.py's, of each source (``support.building.compile_commands``). sources: others of this folder.
    flags: of these and the linker; without libraries of its own the program runs in an emulator.
    """
    objects = [object_of(factory, command)[0] for command in commands.values()]
    plain = commands["engine.cpp"]
    compiler = plain[: plain.index("-MD")]
    ours = [HERE / source for source in ("cpu_driver.cpp", *sources)]
    link = [*compiler, f"-I{HERE}", *ours, *objects, *flags, "-o", PROGRAM]
    folder = made_once(factory, name, lambda folder: subprocess.run(link, cwd=folder, check=True))
    return str(folder / PROGRAM)


def decode(
    command: Sequence[str],
    described: dict[str, Any],
    images: np.ndarray,
    *,
    isa: str,
    precision: str,
    threads: int = 1,
    order: str = "sequential",
    chooser: Chooser = GREEDY,
) -> tuple[np.ndarray, list[str]]:
    """The images (N, C, H, W) uint8 decoded by the program that ``command`` starts, and the sets that are usable there.

    described: a program as ``pxfast.engines.compiled.program_of`` gives it.
    """
    stream = Stream()
    stream.program(described)
    stream.text(isa)
    stream.integers(precision == "bf16", threads, ORDERS[order])
    stream.chooser(images, chooser)
    output, said = stream.run(command)
    return np.frombuffer(output, np.uint8).reshape(images.shape).copy(), said.split()
