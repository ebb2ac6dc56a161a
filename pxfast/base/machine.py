"""What this machine is: its processor, its devices, and how much of it this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .checks import check_text


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_device(name: str) -> torch.device:
    """'auto' is a GPU where there is one; 'cpu', 'cuda' and 'cuda:N' are themselves.

    Raises ValueError for other names, and where CUDA is asked for and torch finds none.
    """
    if check_text("device", name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (kind == "cpu" and index) or (index and not index.isdecimal()):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} was asked for, and torch finds {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def torch_instructions(device: torch.device | str) -> str:
    """What torch's rounding depends on: the GPU's name, or the instructions that torch uses on this processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def processor_name() -> str:
    """What the operating system calls the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown processor")
