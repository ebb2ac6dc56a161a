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


def build(
    folder: Path, commands: dict[str, list[str]], sources: Sequence[str] = (), flags: Sequence[str] = ("-static",)
) -> Path:
    """The CPU engine as a program that decodes stdin's images, made in ``folder``.

    commands: setup.py's, of each source (``support.building.compile_commands``). Their objects stay in the folder.
    sources: others of this folder. flags: for all; without libraries of its own the program runs in an emulator.
    """
    commands = {name: [*command, *flags] for name, command in commands.items()}
    for command in commands.values():
        subprocess.run(command, cwd=folder, check=True)
    plain = commands["engine.cpp"]
    compiler, objects = (
        plain[: plain.index("-MD")],
        [f"{command[command.index('-o') + 1]}" for command in commands.values()],
    )
    ours = [str(HERE / source) for source in ("cpu_driver.cpp", *sources)]
    link = [*compiler, f"-I{HERE}", *ours, *objects, *flags, "-o", PROGRAM]
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
