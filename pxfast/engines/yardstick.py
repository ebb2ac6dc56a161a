"""The rate of torch's own matrix products: what an engine's work is held against.

In fp32 torch has two, its BLAS's, which is MKL's on x86, and oneDNN's; the faster one counts. On AMD's processors MKL
runs at half of oneDNN's rate, since it uses AVX2 there whatever it is told.

An engine that is held to a lesser instruction set is measured against torch held to the same one. Torch and its
libraries read their limits when they are loaded, so a :class:`Yardstick` is a process of its own. It waits while the
engine works; rounds of both take turns, so that what else the machine does falls on both.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base.code import import_path

# (rows, inner, columns): blocks of images times the taps and channels of the paper's layers, and a larger square
# product, in case the library is at its best there
MATRIX_SHAPES = ((64, 1920, 320), (128, 1920, 320), (256, 1280, 160), (1024, 1024, 1024))
GPU_MATRIX_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NATIVE_BF16 = ("avx512amx", "avx512bf16", "neonbf16")


def _limits(aten: str, onednn: str, mkl: str, openblas: str) -> dict[str, str]:
    return {
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OPENBLAS_CORETYPE": openblas,
    }


# What holds torch and its libraries to an instruction set.
LIMITS = {
    "avx512amx": _limits("avx512", "AVX512_CORE_AMX", "AVX512_E4", "SapphireRapids"),
    "avx512bf16": _limits("avx512", "AVX512_CORE_BF16", "AVX512_E3", "Cooperlake"),
    "avx512": _limits("avx512", "AVX512_CORE", "AVX512", "SkylakeX"),
    "avx2": _limits("avx2", "AVX2", "AVX2", "Haswell"),
    "portable": _limits("default", "SSE41", "SSE4_2", "Nehalem"),
}
# On aarch64 only SVE is left out, for all sets. It has not been tried on such a machine.
ARM_LIMITS = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "ADVSIMD", "OPENBLAS_CORETYPE": "NEOVERSEN1"}
BLAS, ONEDNN = "BLAS", "oneDNN"
# Whose products count where not both do: MKL keeps to SSE on Intel's processors alone.
PRODUCTS = {"portable": (ONEDNN,), "neon": (BLAS,), "neonbf16": (BLAS,)}
CAPABILITY = {  # what torch then says of itself
    "avx512amx": "AVX512",
    "avx512bf16": "AVX512",
    "avx512": "AVX512",
    "avx2": "AVX2",
}

# with modules from where this process has them
PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pxfast.engines.yardstick import serve
serve()
"""


def matrix_precision(isa: str, precision: str) -> str:
    """In which precision a set's matrix rate is asked for: torch emulates bf16 where there are no instructions."""
    return "bf16" if precision == "bf16" and isa in NATIVE_BF16 else "fp32"


class Yardstick:
    """Torch's matrix rate on an instruction set, from a process that is kept until the end of the ``with`` block.

    isa: a name that ``pxfast info`` lists. precision: 'fp32' or 'bf16', of the products themselves. cpu_time: seconds
    are those of the processors per thread, not of the clock. RuntimeError where torch does not keep to the set.
    """

    def __init__(self, isa: str, precision: str, threads: int, *, cpu_time: bool = False) -> None:
        self.isa = isa
        products = products_in(precision, PRODUCTS.get(isa, (BLAS, ONEDNN)))
        request = {"precision": precision, "threads": threads, "cpu_time": cpu_time, "products": products}
        self._request = json.dumps(request) + "\n"
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(import_path())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(ARM_LIMITS if isa.startswith("neon") else LIMITS[isa])},
        )

    def __enter__(self) -> Yardstick:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def rate(self) -> float:
        """GFLOP/s of one round, some tenths of a second long."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(self._request)
            process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer is missing as well
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process that measures torch's matrix rate ended with {process.wait()}")
        answer = json.loads(line)
        wanted = CAPABILITY.get(self.isa, answer["capability"])
        if answer["capability"] != wanted:
            raise RuntimeError(f"torch was to be held to {wanted}, and says that it uses {answer['capability']}")
        return float(answer["gflops"])


def serve() -> None:
    """The other side: answers every line of standard input with a round's rate."""
    chosen: dict[str, tuple[str, tuple[int, int, int]]] = {}
    cpu = torch.device("cpu")
    for line in sys.stdin:
        request = json.loads(line)
        threads, dtype = request["threads"], DTYPES[request["precision"]]
        clock = clock_of(threads, request["cpu_time"])
        with torch_threads(threads):
            if line not in chosen:
                ways = itertools.product(request["products"], MATRIX_SHAPES)
                best = {way: max(laps(*way, dtype, 0.2, cpu, clock)) for way in ways}
                chosen[line] = max(best, key=lambda way: best[way])
            gflops = statistics.median(laps(*chosen[line], dtype, 0.3, cpu, clock))
        answer = {"gflops": gflops, "capability": torch.backends.cpu.get_cpu_capability()}
        print(json.dumps(answer), flush=True)


def clock_of(threads: int, cpu_time: bool) -> Callable[[], float]:
    """Tells the seconds: those of the clock, or those that the processors have worked for this process, per thread."""
    return (lambda: time.process_time() / threads) if cpu_time else time.perf_counter


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matrix_rate(
    precision: str,
    threads: int,
    seconds: float = 0.3,
    *,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """GFLOP/s of torch's matrix products in this process: the best of a few shapes, each tried for ``seconds``.

    precision: 'fp32' or 'bf16'. The best lap counts, not the mean: the limit of the machine is asked for, not its load
    of the moment. clock: tells the seconds.
    """
    device = torch.device(device)
    gpu = device.type == "cuda"
    products = (BLAS,) if gpu else products_in(precision, (BLAS, ONEDNN))
    ways = itertools.product(products, GPU_MATRIX_SHAPES if gpu else MATRIX_SHAPES)
    with torch_threads(threads):
        return max(max(laps(*way, DTYPES[precision], seconds, device, clock)) for way in ways)


def products_in(precision: str, products: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the products that there are, and that differ: in bf16 torch asks oneDNN in any case."""
    both = precision == "fp32" and torch.backends.mkldnn.is_available()
    return products if both else (BLAS,)


def laps(
    product: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    seconds: float,
    device: torch.device,
    clock: Callable[[], float],
) -> list[float]:
    """GFLOP/s of products of one kind and shape, lap by lap of some milliseconds, at least one."""
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(device, dtype), torch.randn(inner, columns).to(device, dtype)
    gpu = device.type == "cuda"
    wait: Callable[[], None] = torch.cuda.synchronize if gpu else lambda: None
    multiply = product_of(product, a, b)
    multiply()
    wait()
    gflop = 2e-9 * rows * inner * columns
    repeats = max(1, round((5000.0 if gpu else 2.0) / gflop))
    found: list[float] = []
    end = clock() + seconds
    while not found or clock() < end:
        started = clock()
        for _ in range(repeats):
            multiply()
        wait()
        found.append(repeats * gflop / (clock() - started))
    return found


def product_of(product: str, a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """Multiplies the matrices (M, K) and (K, N) when it is called; oneDNN's result is in a layout of its own."""
    if product == ONEDNN:
        left, right = a.to_mkldnn(), b.t().contiguous().to_mkldnn()
        return lambda: F.linear(left, right)
    out = torch.mm(a, b)
    return lambda: torch.mm(a, b, out=out)
