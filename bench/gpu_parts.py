"""What bench/gpu.sh runs on a GPU: the parts, their limits and their order; gpu_minutes.py runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "triton-cache"


@dataclasses.dataclass(frozen=True)
class Part:
    """A command under a limit in seconds. In it PYTHON, ENGINE, TRITON, SMALL, ARCHIVE and PROFILE stand for what they
    say.

    tool: what runs the command, where there is a GPU. variables: its own. stand_in: the command of a rehearsal without
    a GPU; (): the same without its tool; None: there is none.
    """

    seconds: float
    words: tuple[str, ...]
    tool: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    stand_in: tuple[str, ...] | None = ()


def report(part: str, seconds: float, options: str = "", engine: str = "ENGINE", tool: tuple[str, ...] = ()) -> Part:
    """A part of gpu_report.py."""
    return Part(seconds, ("PYTHON", "bench/gpu_report.py", part, *options.split(), "--engine", engine, "SMALL"), tool)


ONE_THREAD = (("OMP_NUM_THREADS", "1"),)  # of torch, where several processes share the processors
CANARIES = {
    f"canary-{order}-{name}": dataclasses.replace(
        report("canary", 45, f"--network shipped-fashion-mnist --order {order} {options}"),
        variables=ONE_THREAD,
    )
    for order in ("sequential", "speculative")
    for name, options in (("fp32", "--precision fp32"), ("mma", "--plans mma"), ("wgmma", ""))
}
# samples of where the warps wait, for bench/scripts/profile_lines.py
COUNTERS = "group:smsp__pcsamp_warp_stall_reasons,inst_executed,gpu__time_duration.sum"
PROFILER = ("ncu", "-k", "regex:decode_rows", "--launch-skip", "5", "--launch-count", "1", "--clock-control", "none")
PROFILER += ("--metrics", COUNTERS, "-f", "-o", "PROFILE")
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--tool")
SMALL_DECODE = ("PYTHON", "bench/gpu_small_decode.py", "--engine", "ENGINE")
# a kernel that hangs blocks the main thread, where the timeout by a signal never fires
LIMITED = ("--timeout-method=thread", "--maxfail=40", "--timeout")
TESTS = ("PYTHON", "-m", "pytest", "-q", "-rfE", "-m", "gpu", "-n", "8", "-p", "no:cacheprovider", *LIMITED, "60")
NO_TESTS = (
    "PYTHON",
    "-m",
    "pytest",
    "-q",
    "-p",
    "no:cacheprovider",
    "-n",
    "2",
    "-k",
    "chunks",
    "tests/engines/test_cuda_engine.py",
)
TRITON = "--network paper-cifar10 --batch 1024"
STEP = (
    "PYTHON",
    "bench/training_rate.py",
    "--preset",
    "full",
    "--compile",
    "no",
    "--optimiser",
    "muon",
    "--profile",
    "30",
)
STEP_SIZE = ("--filters", "80", "--resnets", "3", "--batch-size", "256", "--device", "cuda")
SMALL_STEP = ("--filters", "4", "--resnets", "1", "--batch-size", "2", "--device", "cpu", "--steps", "1")

PARTS = {
    "machine": Part(20, ("nvidia-smi",), stand_in=("uname", "-a")),
    "build": Part(
        150,
        ("PYTHON", "setup.py", "build_ext", "--inplace"),
        variables=(("PXFAST_CUDA", "1"), ("NVCC_APPEND_FLAGS", "-lineinfo")),
        stand_in=("PYTHON", "-c", "import torch, pxfast._C"),
    ),
    "matrix": report("matrix", 40),
    **CANARIES,
    "throughput": report(
        "throughput", 110, "--network paper-cifar10 --batch 2048 --plans default,2,4,8,mma,clusters --repeats 2"
    ),
    "latency-cifar10": report("latency", 30, "--network shipped-cifar10 --repeats 2"),
    "latency-fashion-mnist": report("latency", 20, "--network shipped-fashion-mnist --repeats 2"),
    "tests": Part(110, (*TESTS, "-k", "not (triton or kernels)", "tests"), (), ONE_THREAD, NO_TESTS),
    "profile": report("decode", 60, "--network paper-cifar10 --batch 2048", tool=PROFILER),
    "shipped": report("throughput", 30, "--network shipped-cifar10 --batch 2048 --repeats 2"),
    "fp32": report("throughput", 45, "--network paper-cifar10 --precision fp32 --batch 1024 --repeats 1"),
    "fashion-mnist": report("throughput", 30, "--network paper-fashion-mnist --batch 4096 --repeats 2"),
    "memcheck": Part(60, SMALL_DECODE, (*SANITIZER, "memcheck")),
    "racecheck": Part(100, SMALL_DECODE, (*SANITIZER, "racecheck")),
    "triton-compile": report("decode", 200, TRITON, "TRITON"),
    "triton": report("throughput", 60, f"{TRITON} --repeats 2", "TRITON"),
    "triton-cache": Part(30, ("tar", "-czf", "ARCHIVE", "-C", str(CACHE.parent), CACHE.name), stand_in=None),
    "plain": report("plain", 60, "--network paper-cifar10 --batch 1024 --repeats 2"),
    "fused": report("fused", 60, "--network paper-cifar10"),
    "training-step": Part(50, (*STEP, *STEP_SIZE), stand_in=(*STEP, *SMALL_STEP)),
    "teams": report(
        "throughput", 60, "--network paper-cifar10 --batch 64 --plans default,1,2,3,4,6,10,20,sequential --repeats 2"
    ),
    "crossover": report("crossover", 60, "--network shipped-fashion-mnist"),
    "memory": report("memory", 60, "--network paper-cifar10"),
    "triton-test": Part(480, (*TESTS[:-1], "400", "-k", "triton or kernels", "tests"), (), (), NO_TESTS),
}
# The parts of a line run at once, and lines one after the other; what has a & is waited for at the end. MISSING: the
# compiled module, where there is none. FAILED: the parts of an earlier run that did not end well.
ORDER = {
    "first": (
        "machine",
        "build",
        "matrix",
        " ".join(CANARIES),
        "throughput",
        "latency-cifar10",
        "latency-fashion-mnist",
        "tests triton-compile&",
        "profile",
        "shipped",
        "fp32",
        "fashion-mnist",
        "memcheck",
        "triton",
        "triton-cache",
    ),
    "second": ("machine", "MISSING", "FAILED", "racecheck", "plain", "fused", "teams", "training-step"),
}
SECONDS = {"first": 450.0, "second": 240.0}
