"""What the engines of a GPU ask first."""

from __future__ import annotations

import torch


def gpu_problem() -> str | None:
    """Why this process can use no GPU, or None when it can."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.cuda._is_in_bad_fork():  # a DataLoader's worker, by default on Linux: any call of CUDA's would raise
        return "this process was forked from one that uses the GPU, where CUDA can't follow; start it by 'spawn'"
    return None
