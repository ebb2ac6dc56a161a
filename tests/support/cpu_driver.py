"""Running the CPU engine's own sources in an emulator of another machine: compiles them, and talks to the program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pxfast.engines.choosers import Chooser, Greedy
from pxfast.engines.compiled import ORDERS

from .program_stream import Stream

HERE = Path(__file__).parent
PROGRAM = "program"
GREEDY = Greedy(16)


def build(folder: Path, commands: dict[str, list[str]]) -> Path:
    """The CPU engine as a program that decodes stdin's images, made in ``folder``.

    commands: setup.py's, of each source (``support.building.compile_commands``). Their objects stay in the folder.
    """
    for command in commands.values():
        subprocess.run(command, cwd=folder, check=True)
    plain = commands["engine.cpp"]
    compiler, objects = plain[: plain.index("-MD")], [command[-1] for command in commands.values()]
    # static, so that an emulator needs no libraries of the other machine
    link = [*compiler, f"-I{HERE}", str(HERE / "cpu_driver.cpp"), *objects, "-static", "-o", PROGRAM]
    subprocess.run(link, cwd=folder, check=True)
    return folder / PROGRAM


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
