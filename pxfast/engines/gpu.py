"""What the engines of a GPU ask of it."""

from __future__ import annotations

import torch


def gpu_problem() -> str | None:
    """Why this process can use no GPU, or None when it can."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.cuda._is_in_bad_fork():  # a DataLoader's worker, by default on Linux: any call of CUDA's would raise
        return "this process was forked from one that uses the GPU, where CUDA can't follow; start it by 'spawn'"
    return None


def free_bytes(device: torch.device) -> int:
    """Device memory that an allocation may get, torch's own reserve included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
