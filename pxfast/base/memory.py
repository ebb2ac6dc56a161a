"""What the command line, whose process is its own, asks of the C library's allocator."""

from __future__ import annotations

import ctypes
import functools

# mallopt's names, from glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
GIB = 1 << 30


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations instead of giving it back to the kernel.

    Evaluating a network allocates the same large tensors again and again; glibc maps each afresh, and the kernel clears
    every page of it. A program of your own may call this too; no function of the package does. Returns whether the C
    library could be asked (glibc's can); False changes nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    wanted = ((MMAP_THRESHOLD, GIB), (TRIM_THRESHOLD, 2 * GIB - 1), (TOP_PAD, GIB // 4))
    return all(mallopt(name, value) == 1 for name, value in wanted)
