"""The allocator's settings, in a process of their own: they can't be taken back."""

import sys

import pytest
from support.helpers import run_python

SCRIPT = """
import platform, resource, torch
from pxfast.base.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(8 << 20)  # 32 MiB, which glibc maps afresh by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

library = platform.libc_ver()[0] or "other"
before = faults()
asked = keep_freed_memory()
# a small allocation may split the freed block, and the heap then grows once more: a round in which it does not is asked
print(library, asked, before, min(faults() for _ in range(4)))
"""


@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks for glibc, hence for Linux")
def test_freed_memory_is_used_again() -> None:
    library, asked, before, after = run_python(SCRIPT).split()
    if library != "glibc":
        pytest.skip(f"the C library is {library}, not glibc")
    assert asked == "True"
    assert int(after) < 0.1 * int(before)
