"""Where the warps of a CUDA kernel wait, by lines of its source: reads a report of Nsight Compute without Nsight.

Usage: python bench/scripts/profile_lines.py PROFILE.ncu-rep [--top 40] [--files decode.cuh,group_tile.cuh]

The report is the one that the part `profile` of bench/gpu.sh writes (warp samples and executed instructions, of one
launch of a kernel that was built with -lineinfo). An instruction counts for the whole chain of calls that were inlined
there, innermost first; --files keeps the lines of these files alone, so that what is shared by many callers is told
apart by them. Needs nvdisasm, of the CUDA toolkit or of Triton's wheel.

A .ncu-rep file is "NVR\\0", then blocks: a length and a header, whose fields 4 and 5 are a table of strings and the
length of what follows, itself lengths and messages, all in protocol buffers' encoding. Nothing of this is documented;
what is read here was found by looking at reports of Nsight Compute 2025.3.
"""

from __future__ import annotations

import argparse
import collections
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cuda_resources import find_tool

Field = tuple[int, int | bytes]  # its number; a varint, or the bytes of anything else
SAMPLES = "smsp__pcsamp_warps_issue_stalled_"
EXECUTED = "inst_executed"
METRICS, CODE = 13, 4  # fields of a result, and of a source that holds machine code
NAME, INSTANCE = 1, 3  # of a metric
ADDRESS, VALUE = 1, 2  # of an instance


def varint(data: bytes, at: int) -> tuple[int, int]:
    """An integer in protocol buffers' encoding, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message. ValueError where it is none."""
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}, which no report has")
        yield key >> 3, message[at : at + size]
        at += size


def first(message: bytes, number: int) -> int | bytes | None:
    return next((value for found, value in fields(message) if found == number), None)


def number_of(message: bytes) -> float:
    """What a message that holds one number says: an integer, a double or a float."""
    _, value = next(fields(message))
    if isinstance(value, int):
        return value
    return float(struct.unpack("<d" if len(value) == 8 else "<f", value)[0])


def blocks(report: bytes) -> Iterator[tuple[list[str], list[bytes]]]:
    """The strings and the messages of each block."""
    if report[:4] != b"NVR\0":
        raise SystemExit("this is no report of Nsight Compute: it does not begin with NVR")
    at = 8 + struct.unpack_from("<I", report, 4)[0]
    while at < len(report):
        (size,) = struct.unpack_from("<I", report, at)
        header = report[at + 4 : at + 4 + size]
        at += 4 + size
        strings, length = first(header, 4), first(header, 5)
        end = at + (length if isinstance(length, int) else 0)
        messages = []
        while at < end:
            (size,) = struct.unpack_from("<I", report, at)
            messages.append(report[at + 4 : at + 4 + size])
            at += 4 + size
        table = fields(strings) if isinstance(strings, bytes) else ()
        names = [value.decode() for _, value in table if isinstance(value, bytes)]
        yield names, messages


def read(path: Path) -> tuple[bytes, dict[str, dict[int, float]]]:
    """The machine code, and by metric its values by the address of their instruction."""
    code, metrics = b"", dict[str, dict[int, float]]()
    for names, messages in blocks(path.read_bytes()):
        for message in messages:
            found = first(message, CODE)
            if isinstance(found, bytes) and found[:4] == b"\x7fELF":
                code = found
            for field, metric in fields(message):
                if field != METRICS or not isinstance(metric, bytes):
                    continue
                index = first(metric, NAME)
                name = names[index] if isinstance(index, int) and index < len(names) else ""
                if name == EXECUTED or (name.startswith(SAMPLES) and not name.endswith("not_issued")):
                    metrics[name] = dict(by_address(metric))
    if not code or EXECUTED not in metrics:
        raise SystemExit(f"{path} has no machine code, or no counts of executed instructions")
    return code, metrics


def by_address(metric: bytes) -> Iterator[tuple[int, float]]:
    for field, instance in fields(metric):
        if field == INSTANCE and isinstance(instance, bytes):
            address, value = first(instance, ADDRESS), first(instance, VALUE)
            if isinstance(address, bytes):
                yield int(number_of(address)), number_of(value) if isinstance(value, bytes) else 0.0


def lines_of(code: bytes, kernel: str) -> dict[int, tuple[str, ...]]:
    """The chain of FILE:LINE of every instruction of the kernel whose name has ``kernel`` in it, innermost first."""
    nvdisasm = find_tool("nvdisasm")
    if nvdisasm is None:
        raise SystemExit("nvdisasm is neither on PATH nor beside nvcc nor in Triton's wheel")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [nvdisasm, "-gi", "-c", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    function, waiting = "", list[str]()
    chain: tuple[str, ...] = ()
    found: dict[int, tuple[str, ...]] = {}
    for line in listing.splitlines():
        if match := re.match(r"\s*\.section\s+\.text\.(\S+?),", line):
            function = match[1]
        elif match := re.search(r'//## File "([^"]+)", line (\d+)', line):
            waiting.append(f"{Path(match[1]).name}:{match[2]}")
        elif (match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+\S", line)) and kernel in function:
            if waiting:
                chain, waiting = tuple(waiting), []
            found[int(match[1], 16)] = chain
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("--kernel", default="decode_rows_by_groups", help="a part of its name")
    parser.add_argument("--files", default="decode.cuh,finish.cuh,choose.cuh,group_tile.cuh,group_feed.cuh,tile.cuh")
    parser.add_argument("--top", type=int, default=40)
    arguments = parser.parse_args()
    code, metrics = read(arguments.report)
    chains, kept = lines_of(code, arguments.kernel), set(arguments.files.split(","))
    start = min(metrics[EXECUTED])
    samples: collections.Counter[tuple[str, ...]] = collections.Counter()
    executed: collections.Counter[tuple[str, ...]] = collections.Counter()
    reasons: dict[tuple[str, ...], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for name, values in metrics.items():
        for address, value in values.items():
            chain = tuple(line for line in chains.get(address - start, ()) if line.partition(":")[0] in kept)
            if name == EXECUTED:
                executed[chain] += int(value)
            else:
                samples[chain] += int(value)
                reasons[chain][name.removeprefix(SAMPLES)] += int(value)
    all_samples, all_executed = sum(samples.values()), sum(executed.values())
    print(f"{all_samples} samples, {all_executed} instructions executed\nsamples %  instructions %  reasons, lines")
    for chain, count in samples.most_common(arguments.top):
        why = " ".join(f"{reason} {100 * n / all_samples:.1f}" for reason, n in reasons[chain].most_common(2))
        shares = f"{100 * count / all_samples:9.2f}  {100 * executed[chain] / all_executed:14.2f}"
        print(f"{shares}  {why}, {' < '.join(chain)}")


if __name__ == "__main__":
    main()
