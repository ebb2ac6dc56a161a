"""The machine code of the CPU engine's tiles: a guard of their speed that needs no clock.

A tile's innermost loop has to keep its sums in registers. Whether a compiler does so is seen in the disassembly alone:
results are the same, six times later.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.building import compile_commands, object_of

pytestmark = pytest.mark.compile

ARM = "aarch64-linux-gnu-"
MACHINE = platform.machine()
COMPILERS = {  # the tools' prefix and the machine that a compiler makes code for
    "g++": ("", MACHINE),
    "clang++": ("", MACHINE),
    f"{ARM}g++": (ARM, "aarch64"),
    "clang++ --target=aarch64-linux-gnu": (ARM, "aarch64"),
}


@dataclasses.dataclass(frozen=True)
class Set:
    """What an instruction set's code looks like.

    tiles: (rows, registers of outputs), the largest ones; a half is a register that two rows share.
    """

    tiles: tuple[tuple[int, float], ...]
    registers: int  # for a vector of 16 outputs
    multiplies: str = "vfmadd...ps"
    of_bf16: str | None = None  # of native bf16

    def is_multiply(self, element: str, instruction: str) -> bool:
        pattern = self.of_bf16 if element == "Bf16" else self.multiplies
        return pattern is not None and re.match(pattern, instruction) is not None


AVX512 = ((5, 5), (6, 4), (4, 6), (8, 3), (12, 2), (12, 1), (10, 2.5), (12, 1.5))
PORTABLE = Set(((2, 4), (3, 3), (5, 2), (12, 1)), 4, r"mulps|fmul\s+v")
NEON = ((6, 4), (8, 3), (12, 2), (12, 1))
SETS = {
    "x86_64": {
        "portable": PORTABLE,
        "avx2": Set(((6, 2), (12, 1)), 2),
        "avx512": Set(AVX512, 1),
        "avx512bf16": Set(AVX512, 1, of_bf16="vdpbf16ps"),
        "avx512amx": Set(AVX512, 1),
    },
    "aarch64": {
        "portable": PORTABLE,
        "neon": Set(NEON, 4, "fmla"),
        "neonbf16": Set(NEON, 4, "fmla", "bfdot"),
    },
}
CASES = [(compiler, isa) for compiler, (_, machine) in COMPILERS.items() for isa in SETS.get(machine, {})]

Instruction = tuple[int, str]  # address, text
JUMP = re.compile(r"(?:j\w+|b(?:\.\w+)?|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#\d+,)\s*([0-9a-f]+)\b")


def functions(objdump: str, file: Path) -> dict[str, list[Instruction]]:
    """The instructions of every function of an object file, by the function's demangled name."""
    command = [objdump, "-d", "-C", "--no-show-raw-insn", str(file)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {}
    for block in text.split("\n\n"):
        if head := re.match(r"\n?[0-9a-f]+ <(.*)>:\n", block):
            lines = re.findall(r"^\s*([0-9a-f]+):\s+(.*)$", block, re.MULTILINE)
            found[head[1]] = [(int(address, 16), code.split("//")[0].strip()) for address, code in lines]
    return found


def innermost_loops(code: list[Instruction]) -> list[list[str]]:
    """What lies between a jump back and its target, where no other such pair lies in between.

    A function's end in between tells that the jump leads from a loop to what follows it.
    """
    index = {address: n for n, (address, _) in enumerate(code)}
    ends = [n for n, (_, text) in enumerate(code) if text.split()[0] == "ret"]
    pairs = []
    for n, (_, text) in enumerate(code):
        first = index.get(int(jump[1], 16), n + 1) if (jump := JUMP.match(text)) else n + 1
        if first <= n and not any(first <= end <= n for end in ends):
            pairs.append((first, n))

    def holds_another(b: int, e: int) -> bool:
        return any((b, e) != (first, last) and b <= first and last <= e for first, last in pairs)

    return [[text for _, text in code[b : e + 1]] for b, e in pairs if not holds_another(b, e)]


def memory_reads(loop: list[str]) -> int:
    """How many values a loop reads from memory in a turn: x86 has one in an operand, aarch64's ldp reads two."""
    reads = 0
    for text in loop:
        if "(%" in text and not text.startswith(("lea", "prefetch")):
            reads += 1
        elif re.match(r"ld\w+\s", text):
            reads += 2 if text.startswith("ldp") else 1
    return reads


def faults_of(objdump: str, file: Path, isa: Set) -> tuple[list[str], set[tuple[int, float]]]:
    """What is wrong with the tiles of an object file, and the shapes of all that it has."""
    faults, shapes = [], set()
    for name, code in functions(objdump, file).items():
        tile = re.search(r"(half_)?tile_kernel<(?:\(anonymous namespace\)::)?(\w+), ([\d, ]+)>", name)
        if tile is None:
            continue
        element, (rows, vectors, *more) = tile[2], map(int, tile[3].split(", "))
        empty, tiles = (0, 1) if tile[1] else more
        registers = vectors * isa.registers - empty  # of weights, in a turn
        outputs = registers - 0.5 if tile[1] else registers
        shapes.add((rows, outputs))
        sums = round(tiles * rows * outputs)
        reads = tiles * registers + rows, tiles * (registers + rows) + (rows if tile[1] else 0)  # least and most
        hot = [loop for loop in innermost_loops(code) if any(isa.is_multiply(element, text) for text in loop)]
        if not hot:
            faults.append(f"{tile[0]}: no innermost loop multiplies")
        for loop in hot:  # several where a compiler does a few turns at once, and the rest one by one
            multiplies = sum(isa.is_multiply(element, text) for text in loop)
            turns, rest = divmod(multiplies, sums)
            if rest:
                faults.append(f"{tile[0]}: {multiplies} products in a turn, not {sums}")
            elif not turns * reads[0] <= memory_reads(loop) <= turns * reads[1]:
                faults.append(f"{tile[0]}: {memory_reads(loop)} reads for {multiplies} products")
            if stack := [text for text in loop if re.search(r"\(%rsp|\[sp\b|\[x29\b", text)]:
                faults.append(f"{tile[0]}: the innermost loop touches the stack: {'; '.join(stack)}")
    return faults, shapes


def faults_on_amx(objdump: str, file: Path) -> tuple[list[str], set[tuple[int, int]]]:
    """The same of the products on AMX's tiles, whose shapes are in such tiles: (down, beside)."""
    faults, shapes = [], set()
    for name, code in functions(objdump, file).items():
        tile = re.search(r"TileProduct<(\d), (\d)>::run", name)
        if tile is None:
            continue
        down, beside = int(tile[1]), int(tile[2])
        shapes.add((down, beside))
        hot = [loop for loop in innermost_loops(code) if any(text.startswith("tdpbf16ps") for text in loop)]
        if not hot:  # the loop that prefetches lies within it, so it is not an innermost one
            ends = [n for n, (_, text) in enumerate(code) if text.startswith("tdpbf16ps")]
            hot = [[text for _, text in code[min(ends) - 2 * (down + beside) : max(ends) + 1]]] if ends else []
        if not hot:
            faults.append(f"{tile[0]}: no loop multiplies")
        for loop in hot:
            products, reads = (sum(text.startswith(word) for text in loop) for word in ("tdpbf16ps", "tileloadd"))
            if products % (down * beside) or products * (down + beside) != reads * down * beside:
                faults.append(f"{tile[0]}: {reads} tiles read for {products} products")
            if stack := [text for text in loop if re.search(r"\(%rsp", text)]:
                faults.append(f"{tile[0]}: between products lies the stack: {'; '.join(stack)}")
    return faults, shapes


@pytest.mark.parametrize(("compiler", "isa"), CASES)
def test_the_innermost_loop_of_a_tile_stays_in_registers(compiler, isa, tmp_path_factory):
    tools, machine = COMPILERS[compiler]
    if sys.platform != "linux":
        pytest.skip("the disassembly is read as Linux's objdump writes it")
    for tool in (compiler.split()[0], f"{tools}objdump"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} here")
    command = compile_commands(compiler, machine).get(f"isa_{isa}.cpp")
    if command is None:
        pytest.skip(f"{compiler} does not know {isa}")
    made, _ = object_of(tmp_path_factory, command)
    faults, shapes = faults_of(f"{tools}objdump", made, SETS[machine][isa])
    assert not faults, "\n".join(faults)
    assert shapes >= set(SETS[machine][isa].tiles)
    if isa == "avx512amx":
        faults, shapes = faults_on_amx(f"{tools}objdump", made)
        assert not faults, "\n".join(faults)
        assert shapes == {(2, 2), (4, 1), (2, 1), (1, 4), (1, 2), (1, 1)}
