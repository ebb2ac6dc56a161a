"""A program, a chooser and images as bytes, for the tests' own binaries; tests/support/program_stream.h reads them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pxfast.engines.choosers import Chooser
from pxfast.engines.compiled import chooser_for

HANGS = 200.0  # seconds: longer than any decode here takes


class Stream:
    """What a binary's standard input will be. Integers and reals take 64 bits, an array follows its length."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def integers(self, *values: int) -> None:
        self.parts.append(struct.pack(f"<{len(values)}q", *values))

    def reals(self, *values: float) -> None:
        self.parts.append(struct.pack(f"<{len(values)}d", *values))

    def floats(self, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, dtype=np.float32)
        self.integers(values.size)
        self.parts.append(values.tobytes())

    def text(self, value: str) -> None:
        self.integers(len(value.encode()))
        self.parts.append(value.encode())

    def program(self, described: dict[str, Any]) -> None:
        """A program as ``pxfast.engines.compiled.program_of`` describes it."""
        self.integers(*(described[key] for key in ("channels", "height", "width", "filters")))
        self.integers(described["head"], described["mixtures"])
        self.floats(described["tables"])
        self.integers(described["input_cache"], len(described["caches"]))
        for cache in described["caches"]:
            self.integers(*cache)
        self.integers(len(described["steps"]))
        for step in described["steps"]:
            self.integers(*(int(step[key]) for key in ("level", "per_row", "scale", "epilogue", "outputs")))
            self.reals(step["multiplier"])
            self.integers(step["concat_elu"], step["raw"], step["elu"], step["early"], len(step["taps"]))
            for *where, matrix in step["taps"]:
                self.integers(*where)
                self.floats(matrix)
            self.integers(len(step["biases"]))
            for values, row, column in step["biases"]:
                self.floats(values)
                self.integers(row, column)

    def chooser(self, images: np.ndarray, chooser: Chooser) -> None:
        """A chooser, and the images (N, C, H, W) uint8 that it chooses in."""
        plain = chooser_for(chooser, torch.from_numpy(np.ascontiguousarray(images)))
        self.integers(plain["samples"])
        self.reals(plain["keep_probability"])
        self.integers(plain["seed"], plain["first"])
        self.reals(plain["inverse_temperature"])
        self.integers(len(images))
        for values in (images, plain["lower"], plain["upper"]):
            self.parts.append(np.ascontiguousarray(values).tobytes())

    def run(self, command: Sequence[str], **environment: str) -> tuple[bytes, str]:
        """What the command writes to standard output and error; it must exit with 0. environment: {} keeps this one."""
        done = subprocess.run(
            command, input=b"".join(self.parts), capture_output=True, env=environment or None, timeout=HANGS
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout, done.stderr.decode()
