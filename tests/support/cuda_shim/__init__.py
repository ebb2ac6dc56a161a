"""Running the CUDA engine's own sources on the host: compiles them against the shim, and talks to the program."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import numpy as np

from pxfast.engines.choosers import Chooser, Greedy

from ..program_stream import Stream

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
PROGRAM = "program"
GREEDY = Greedy(16)


def compile_program(folder: Path, compiler: str, sanitizer: str, sources: list[Path]) -> Path:
    """A program of ``sources`` and the fibers, in ``folder``. sanitizer: none, 'thread' or 'address,undefined'.

    The thread sanitizer takes fibers for threads: the code that switches them is no part of what it watches.
    """
    sanitize = [f"-fsanitize={sanitizer}", "-fno-omit-frame-pointer", "-g"] if sanitizer else []
    common = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off"]
    common += ["-DPXFAST_CUDA_SHIM", f"-I{HERE}", f"-I{CSRC}", f"-I{CSRC / 'cuda'}"]
    fibers, program = folder / "fibers.o", folder / PROGRAM
    fiber_flags = ["-DPXFAST_THREAD_SANITIZER"] if sanitizer == "thread" else sanitize
    subprocess.run([*common, *fiber_flags, "-c", str(HERE / "fibers.cpp"), "-o", str(fibers)], check=True)
    subprocess.run([*common, *sanitize, *map(str, sources), str(fibers), "-o", str(program)], check=True)
    return program


def build(folder: Path, compiler: str, sanitizer: str = "") -> Path:
    """The CUDA engine as a program that decodes stdin's images, made in ``folder``."""
    engine = [CSRC / "common" / "program.cpp", CSRC / "cuda" / "pack.cpp", CSRC / "cuda" / "engine.cpp"]
    sources = [HERE / "main.cpp", HERE / "runtime.cpp", *engine]
    return compile_program(folder, compiler, sanitizer, sources)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a decode runs: order 0 is auto, 1 sequential, 2 speculative; members 0 lets the engine choose.

    seed: of the order in which threads run, 0 for one after the other. eager_copies: asynchronous copies happen at
    once, not at the last moment. groups: bf16, row steps by warpgroups.
    """

    bf16: bool = False
    order: int = 0
    members: int = 0
    seed: int = 0
    eager_copies: bool = False
    multiprocessors: int = 4
    shared_bytes: int = 227 * 1024
    chooser: Chooser = GREEDY
    clusters: bool = False
    groups: bool = False

    @property
    def kernel(self) -> int:
        """As csrc/cuda/program.h counts them."""
        return 2 if self.groups else int(self.bf16)


def decode(program: Path, described: dict[str, Any], images: np.ndarray, settings: Settings, **environment: str):
    """The images (N, C, H, W) uint8 decoded, and what the program says of its plan."""
    stream = Stream()
    stream.program(described)
    stream.integers(settings.kernel, settings.order, settings.members, settings.clusters)
    stream.integers(settings.seed, settings.eager_copies, settings.multiprocessors, settings.shared_bytes)
    stream.chooser(images, settings.chooser)
    output, said = stream.run([str(program)], **environment)
    return np.frombuffer(output, np.uint8).reshape(images.shape), said
