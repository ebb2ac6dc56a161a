"""Reports of the profiler are read: a small one, written here as Nsight Compute's are found to be."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from support.helpers import bench_script

script = bench_script("scripts/profile_lines.py")
ELF = b"\x7fELF and machine code"
STALLED = script["SAMPLES"] + "barrier"


def varint(value: int) -> bytes:
    digits = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([digit | 128 for digit in digits[:-1]] + digits[-1:])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(names: list[str], *messages: bytes) -> bytes:
    content = b"".join(struct.pack("<I", len(message)) + message for message in messages)
    header = field(4, b"".join(field(1, name.encode()) for name in names)) + field(5, len(content))
    return struct.pack("<I", len(header)) + header + content


def metric(name: int, values: dict[int, int]) -> bytes:
    instances = [field(1, field(5, address)) + field(2, field(5, value)) for address, value in values.items()]
    return field(13, field(1, name) + b"".join(field(3, instance) for instance in instances))


def report(*results: bytes) -> bytes:
    start = b"NVR\0" + struct.pack("<I", 2) + field(1, 7)
    return start + block([], field(4, ELF)) + block(["", "inst_executed", STALLED], *results)


def test_a_report_is_read(tmp_path: Path) -> None:
    executed, stalled = {1 << 40: 300, (1 << 40) + 16: 5}, {(1 << 40) + 16: 70}
    file = tmp_path / "small.ncu-rep"
    file.write_bytes(report(metric(1, executed) + metric(2, stalled)))
    code, metrics = script["read"](file)
    assert code == ELF
    assert metrics == {"inst_executed": executed, STALLED: stalled}


@pytest.mark.parametrize("content", [b"", b"PNG", report(), report(metric(2, {16: 1}))], ids=range(4))
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "other.ncu-rep"
    file.write_bytes(content)
    with pytest.raises(SystemExit, match=r"no report of Nsight Compute|no counts of executed instructions"):
        script["read"](file)
