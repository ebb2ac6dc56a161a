"""A kernel call as a value: it can be run, captured in a graph, or compiled ahead of time for a GPU that is not here.

``FP_FUSION`` decides for every kernel whether the compiler may contract a multiplication and an addition into a fused
one. It changes bits, hence ties; Triton's own default is read from TRITON_DEFAULT_FP_FUSION when a kernel is compiled
and flips in 3.10. So every launch says it, and neither that variable nor the version of Triton has a voice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from torch import Tensor
from triton.compiler import ASTSource

from ..base.forks import ThreadLock
from .functions import sigmoid

FP_FUSION = False
INTERPRETED = not isinstance(sigmoid, triton.runtime.JITFunction)  # TRITON_INTERPRET=1 when triton was imported

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
}

_interpreter = ThreadLock()  # the interpreter patches triton.language while a kernel runs: one kernel at a time


@dataclasses.dataclass(frozen=True)
class Tile:
    """The shape of a program's share of a matrix product, and how many warps and pipeline stages compute it."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3


@dataclasses.dataclass(frozen=True)
class Launch:
    """``kernel`` over ``grid`` programs. arguments: tensors, ints (32 bits) and floats; constants: its constexprs.

    The kernels leave every integer unspecialised (what matters for alignment is a constant), so that a signature and
    its constants are a whole shape class. Tensors must begin at multiples of 16 bytes.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Tensor | int | float]
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3

    def run(self) -> None:
        """Enqueue it on the current stream; in the interpreter, run it."""
        if INTERPRETED:
            with _interpreter:
                self.kernel[self.grid](**self.arguments, **self.constants)
        else:
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": FP_FUSION}

    @property
    def signature(self) -> dict[str, str]:
        """Triton's names of the arguments' types."""

        def name(value: Tensor | int | float) -> str:
            if isinstance(value, Tensor):
                return "*" + TYPES[value.dtype]
            return "fp32" if isinstance(value, float) else "i32"

        return {key: name(value) for key, value in self.arguments.items()}

    @property
    def shape_class(self) -> tuple[Any, ...]:
        """Launches of one shape class run the same machine code."""
        constants = tuple(sorted(self.constants.items()))
        return self.kernel.__name__, tuple(self.signature.items()), constants, self.num_warps, self.num_stages

    def compile(self, target: Any) -> Any:
        """The machine code for a ``triton.backends.compiler.GPUTarget``, which need not be here: a CompiledKernel."""
        names = self.kernel.arg_names
        pointers = [names.index(key) for key, kind in self.signature.items() if kind.startswith("*")]
        if triton.__version__.startswith("3.2."):
            from triton.backends.compiler import AttrsDescriptor

            hints = AttrsDescriptor.from_hints(dict.fromkeys(pointers, 16))
            source = ASTSource(self.kernel, self.signature, self.constants, hints)
        else:
            signature = {name: self.signature.get(name, "constexpr") for name in names}
            attributes = {(place,): [["tt.divisibility", 16]] for place in pointers}
            source = ASTSource(self.kernel, signature, self.constants, attributes)
        return triton.compile(source, target=target, options=self.options)
