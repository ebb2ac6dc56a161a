"""What nvcc makes of the CUDA kernels for every architecture: registers, stack, spills, barriers of the whole GPU's
memory. Needs nvcc and cuobjdump, no GPU.

Usage: python bench/scripts/cuda_resources.py [--archs 80,90a] [--out docs/cuda-resources.md]
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "csrc" / "cuda" / "decode.cu"
KERNELS = {"IfE": "fp32", "4Bf16E": "bf16", "by_groups": "bf16, wgmma"}  # in the mangled name
GROUPS_ARCH = "90a"  # elsewhere the kernel of that name is empty


@dataclasses.dataclass(frozen=True)
class Kernel:
    """ptxas's report of one kernel: bytes of stack frame, spill stores and spill loads. ``barriers``: instructions that
    wait until the whole GPU sees this thread's writes, None where there is no cuobjdump to count them.
    """

    arch: str
    precision: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    barriers: int | None = None


def find_nvcc() -> str | None:
    """nvcc as setup.py finds it."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.path.join(home, "bin"))


def find_tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: the toolkit's, beside nvcc; or the one in Triton's wheel."""
    nvcc = find_nvcc()
    folders = [Path(os.path.realpath(nvcc)).parent, Path(nvcc).parent] if nvcc else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    return shutil.which(name) or next(filter(None, (shutil.which(name, path=f) for f in folders)), None)


def precision_of(mangled: str) -> str:
    return next(precision for part, precision in KERNELS.items() if part in mangled)


def gpu_barriers(library: str) -> dict[str, int] | None:
    """Of each kernel in an object file, how many instructions make the whole GPU's memory wait."""
    cuobjdump = find_tool("cuobjdump")
    if cuobjdump is None:
        return None
    listing = subprocess.run([cuobjdump, "-sass", library], capture_output=True, text=True, check=True).stdout
    return {
        precision_of(code.splitlines()[0]): len(re.findall(r"\bMEMBAR\.\w+\.(?:GPU|SYS)\b", code))
        for code in listing.split("Function :")[1:]
        if "decode_rows" in code.splitlines()[0]
    }


def default_archs() -> list[str]:
    """Those that setup.py builds for when it is not told."""
    text = (ROOT / "setup.py").read_text()
    found = re.search(r'DEFAULT_CUDA_ARCHS = "(.*)"', text)
    assert found is not None
    return found[1].split(",")


def known_archs(nvcc: str) -> set[str]:
    """The architectures that this nvcc can compile for, without the letters behind the number."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return {name.removeprefix("compute_") for name in listed.split()}


def compile_for(nvcc: str, arch: str) -> list[Kernel]:
    """Compile for one architecture, warnings being errors. subprocess.CalledProcessError carries the messages."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings"]
        command += ["-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=-v", f"-gencode=arch=compute_{arch},code=sm_{arch}"]
        command += ["-c", str(SOURCE), "-o", os.path.join(folder, "decode.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        barriers = gpu_barriers(command[-1]) if os.path.exists(command[-1]) else None
    report = done.stderr + done.stdout
    losses = [line for line in report.splitlines() if "Potential Performance Loss" in line]
    if losses:  # wgmma made synchronous, for example; no warning to nvcc
        raise RuntimeError("\n".join(losses))
    kernels = parse(arch, report)
    if barriers is None:
        return kernels
    return [dataclasses.replace(kernel, barriers=barriers[kernel.precision]) for kernel in kernels]


def parse(arch: str, report: str) -> list[Kernel]:
    """The kernels of a ptxas report; functions that kernels call are counted into the stack of theirs."""
    kernels = []
    for entry in report.split("Compiling entry function")[1:]:
        precision = precision_of(entry.splitlines()[0])
        if "wgmma" in precision and arch != GROUPS_ARCH:
            continue
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        assert frames, report
        assert registers, report
        stack, stores, loads = (max(int(frame[i]) for frame in frames) for i in range(3))
        kernels.append(Kernel(arch, precision, int(registers[1]), stack, stores, loads))
    return sorted(kernels, key=lambda kernel: kernel.precision)


def table(nvcc: str, kernels: list[Kernel]) -> str:
    version = re.search(r"release (\S+),", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)
    lines = [
        "# What nvcc makes of the CUDA kernels",
        "",
        f"By `python bench/scripts/cuda_resources.py`, nvcc {version[1] if version else 'of unknown version'}.",
        "One block runs on a multiprocessor. It has 256 threads, which may have 255 registers each, or with wgmma 384",
        "threads of 168; spilled ones would go to local memory. GPU-wide barriers wait until every multiprocessor sees",
        "a thread's writes; they belong where a team of blocks meets, and nowhere else.",
        "",
        "| architecture | kernel | registers | stack bytes | spill stores | spill loads | GPU-wide barriers |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for kernel in kernels:
        arch, *rest = dataclasses.astuple(kernel)
        lines.append(f"| sm_{arch} | " + " | ".join(map(str, rest)) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default=",".join(default_archs()))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc is neither on PATH nor under CUDA_HOME")
    kernels = [kernel for arch in arguments.archs.split(",") for kernel in compile_for(nvcc, arch)]
    text = table(nvcc, kernels)
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
