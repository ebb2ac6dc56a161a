"""What this machine is: its processor, its devices, and how much of it this process may use."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import torch

from .checks import check_text

CPUINFO = Path("/proc/cpuinfo")


def usable_processors() -> int:
    """How many processors this process may use: those that it may run on, or as many as its quota pays for."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    return here if quota is None else min(here, quota)


@functools.cache
def _quota() -> int | None:
    return processor_quota(Path("/"))


def processor_quota(root: Path) -> int | None:
    """How many processors the control groups of this process pay for, rounded up; None where there is no limit.

    The least of its group's and all groups' around that: ``cpu.max`` of the second version, ``cpu.cfs_quota_us`` and
    ``cpu.cfs_period_us`` of the first. In a container the path of its own group may not be there, but its root is.
    root: of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return None
    mounted, found = root / "sys/fs/cgroup", []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        own = Path(path.lstrip("/"))
        for group in (own, *own.parents):
            if not controllers:
                found.append(_processors(mounted / group / "cpu.max"))
            elif "cpu" in controllers.split(","):
                files = (mounted / "cpu" / group / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
                found.append(_processors(*files))
    return min((quota for quota in found if quota is not None), default=None)


def _processors(*files: Path) -> int | None:
    """What a quota and its period, the two words of these files, come to. None where there is none."""
    try:
        quota, period = (int(word) for word in " ".join(file.read_text() for file in files).split())
    except (OSError, ValueError):  # not there, or 'max'
        return None
    return max(1, -(-quota // period)) if quota > 0 and period > 0 else None


def parse_device(name: str) -> torch.device:
    """'auto' is a GPU where there is one; 'cpu', 'cuda' and 'cuda:N' are themselves.

    Raises ValueError for other names, and where CUDA is asked for and torch finds none.
    """
    if check_text("device", name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]{0,3}))?", name):  # as torch reads numbers
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    kind, _, index = name.partition(":")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} was asked for, and torch finds {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def torch_instructions(device: torch.device | str) -> str:
    """What torch's rounding depends on: the GPU's name, or the instructions that torch uses on this processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def torch_prefers_bf16(device: torch.device | str) -> bool:
    """Whether torch's convolutions are faster in bf16 than in fp32: what ``precision='auto'`` trains in.

    Of a GPU, whether it has bf16. On a processor without instructions for it products in bf16 take dozens of times as
    long as in fp32. AMX has bf16 and no fp32. AVX-512-BF16 gains on AMD's cores and not on Intel's (measured:
    docs/cpu.md). How fast others are was not measured, so fp32 is taken there.
    """
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = _of_processor("flags").split()
    intel = _of_processor("vendor_id") == "GenuineIntel"
    return "amx_bf16" in flags or ("avx512_bf16" in flags and not intel)


def processor_name() -> str:
    """What the operating system calls the processor."""
    return _of_processor("model name") or "unknown processor"


def _of_processor(key: str) -> str:
    """What Linux tells of the first processor; "" where it tells nothing."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
