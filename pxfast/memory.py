"""What a long run on the CPU asks of the C library's allocator."""

from __future__ import annotations

import ctypes
import functools

# mallopt's names, from glibc's malloc.h
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
GIB = 1 << 30


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next allocations instead of giving it back to the kernel.

    A training step allocates the same large tensors again and again; glibc maps each afresh, and the kernel clears
    every page: some 12,000 page faults a step of the network of the preset 'small'. Returns whether the C library
    could be asked (glibc's can); False changes nothing. Small tensors and threads of their own are as before.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return False
    wanted = ((MMAP_THRESHOLD, GIB), (TRIM_THRESHOLD, 2 * GIB - 1), (TOP_PAD, GIB // 4))
    return all(mallopt(name, value) == 1 for name, value in wanted)
