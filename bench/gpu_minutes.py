"""The parts that need a GPU, in order, each a process under a limit of its own: what ``bench/gpu.sh`` runs.

    python bench/gpu_minutes.py first|second|PART... [--seconds N] [--from FOLDER]

first (450 s): is the engine right, how fast is it. second (240 s): what failed in the rows of --from, again, and what
first had no time for. Each row goes to $OUT (default: bench/results) the moment it is known, and so does what the parts
print; a kill, a hang or an error costs one part. At most 8 files come of it, none over 16 MiB. --engine cpu --small
rehearses all of it without a GPU: what only a GPU's tools do is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.machinery
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

from gpu_parts import CACHE, ORDER, PARTS, ROOT, SECONDS, TESTS, Part
from gpu_rows import LOG, ROWS, keep, out_folder, read_rows

LOG_BYTES = 400_000  # that a part may print; twenty parts of both runs may
FILE_BYTES = 16 * 2**20
KILL, END = 5.0, 10.0  # seconds after its time that a part is killed, and that it is no longer waited for
LEAST = 5.0  # seconds that a part is started for
NO_GPU = "without a GPU"
EXTENSION = importlib.machinery.EXTENSION_SUFFIXES[0]


class Running:
    """A part that runs: what it prints goes into the log, as much as may."""

    def __init__(self, name: str, command: list[str], seconds: float, variables: dict[str, str]) -> None:
        self.name, self.started, self.seconds = name, time.monotonic(), seconds
        self.lines: list[str] = []
        limit = ["timeout", f"--kill-after={KILL:g}", f"{seconds:g}"]  # which ends it even if this process is killed
        self.process = subprocess.Popen(
            [*limit, *command],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        first = f"== {name}: {shlex.join(command)}\n"
        self.thread = threading.Thread(target=self._copy, args=(first,), daemon=True)
        self.thread.start()

    def _copy(self, first: str) -> None:
        """Lines of parts that run at once mix, so each says whose it is."""
        assert self.process.stdout is not None
        with open(out_folder() / LOG, "a", buffering=1) as log:
            room = min(LOG_BYTES, FILE_BYTES - log.tell() - len(first.encode()))
            log.write(first)
            for line in self.process.stdout:
                if line.startswith(("FAILED ", "ERROR ")):  # of pytest
                    self.lines.append(line.split(" - ")[0].split(maxsplit=1)[1].strip())
                text = f"{self.name}| {line.rstrip()}\n"
                room -= len(text.encode())
                if room >= 0:
                    log.write(text)

    def wait(self) -> None:
        """Until it ends, or the driver of a GPU keeps it from ending, or what it started keeps its output open."""
        last = self.started + self.seconds + END - 2
        row: dict[str, Any] = {"part": "end", "of": self.name}
        try:
            row["exit"] = self.process.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            row["error"] = "it could not be killed"
        self.thread.join(2)
        row["seconds"] = round(time.monotonic() - self.started, 1)
        keep({**row, **({"failed_tests": self.lines[:100]} if self.lines else {})})


@dataclasses.dataclass(frozen=True)
class Minutes:
    """One run of parts. engine, small, python: as the command line says it. ends: on the clock ``time.monotonic``."""

    engine: str
    small: bool
    python: str
    ends: float
    variables: dict[str, str]
    running: dict[str, Running] = dataclasses.field(default_factory=dict)

    @property
    def gpu(self) -> bool:
        return self.engine != "cpu"

    def command(self, part: Part) -> list[str] | None:
        """The words that are run; None for what has no stand-in where there is no GPU."""
        words = (*part.tool, *part.words) if self.gpu else part.words if part.stand_in == () else part.stand_in
        if words is None:
            return None
        values = {
            "PYTHON": self.python,
            "ENGINE": self.engine,
            "TRITON": "triton" if self.gpu else self.engine,
            "SMALL": "--small" if self.small else "",
            "PROFILE": f"{self.variables['OUT']}/gpu-profile",
            "ARCHIVE": f"{self.variables['OUT']}/{CACHE.name}.tar.gz",
        }
        if self.gpu and part.tool:
            values[part.tool[0]] = shutil.which(part.tool[0]) or f"/usr/local/cuda/bin/{part.tool[0]}"
        return [word for word in (values.get(word, word) for word in words) if word]

    def start(self, name: str, part: Part) -> Running | None:
        left = self.ends - time.monotonic() - END
        command = self.command(part)
        if command is None or left < LEAST:
            keep({"part": "end", "of": name, "skipped": NO_GPU if command is None else "no time is left"})
            return None
        try:
            return Running(name, command, min(part.seconds, left), {**self.variables, **dict(part.variables)})
        except OSError as error:
            keep({"part": "end", "of": name, "error": str(error)})
            return None

    def run(self, lines: list[dict[str, Part]]) -> None:
        """Lines of parts, by their names; a name that ends with & is waited for last."""
        for line in lines:
            for name, part in line.items():
                one = self.start(name.rstrip("&"), part)
                if one is not None:
                    self.running[name] = one
            self.wait_for([name for name in self.running if not name.endswith("&")])
            keep_module()
        self.wait_for(list(self.running))

    def wait_for(self, names: list[str]) -> None:
        for name in names:
            self.running[name].wait()
            del self.running[name]

    def stop(self, number: int, frame: object) -> None:
        """Ctrl-C, or a polite kill: ends the parts and this process at once; an exception could get lost on its way."""
        for one in list(self.running.values()):
            one.process.terminate()
        os._exit(128 + number)


def keep_module() -> None:
    """Put the compiled module into $OUT, for a run on a machine that has none, and let nothing there be too large."""
    for file in (ROOT / "pxfast").glob(f"_C*{EXTENSION}"):
        if not (kept := out_folder() / file.name).exists() or kept.stat().st_mtime < file.stat().st_mtime:
            shutil.copy(file, kept)
    for file in [*out_folder().glob(f"_C*{EXTENSION}"), *out_folder().glob(CACHE.name + ".*")]:
        if file.stat().st_size > FILE_BYTES:
            keep({"part": "too large", "file": file.name, "bytes": file.stat().st_size})
            file.unlink()


def restore(folder: Path) -> None:
    """Take the compiled module and Triton's cache from the $OUT of an earlier run, where they are not here."""
    for file in folder.glob(f"_C*{EXTENSION}"):
        if not (ROOT / "pxfast" / file.name).exists():
            shutil.copy(file, ROOT / "pxfast")
    archive = folder / f"{CACHE.name}.tar.gz"
    if archive.is_file() and not CACHE.exists():
        with tarfile.open(archive) as file:
            file.extractall(CACHE.parent, filter="data")


def failed(rows: list[dict[str, Any]]) -> dict[str, Part]:
    """The parts that did not end well, of tests those alone that failed."""
    found = {}
    for row in rows:
        name = row.get("of")
        if row.get("part") != "end" or name not in PARTS:
            continue
        found.pop(name, None)  # what was run again counts
        if row.get("exit") != 0 and row.get("skipped") != NO_GPU:
            tests = row.get("failed_tests")
            found[name] = dataclasses.replace(PARTS[name], words=(*TESTS, *tests)) if tests else PARTS[name]
    return found


def lines_of(names: list[str], earlier: list[dict[str, Any]]) -> list[dict[str, Part]]:
    """The parts of each line of the order that the names mean."""
    lines: list[dict[str, Part]] = []
    for name in names:
        for line in ORDER.get(name, (name,)):
            if line == "FAILED":
                lines += [{again: part} for again, part in failed(earlier).items() if {again: part} not in lines]
            elif line == "MISSING":
                lines += [] if any((ROOT / "pxfast").glob(f"_C*{EXTENSION}")) else [{"build": PARTS["build"]}]
            else:
                lines.append({word: PARTS[word.rstrip("&")] for word in line.split()})
    return lines


def architecture() -> str | None:
    """This GPU's architecture, as nvcc and PXFAST_CUDA_ARCHS name it: '90a'. None: as many as setup.py knows."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said[0].replace(".", "") + "a" * said[0].startswith("9.") if said else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*ORDER, *PARTS], metavar="first|second|PART")
    parser.add_argument("--seconds", type=float, help="of all of it; by default 450 or 240, and of parts their limits")
    parser.add_argument("--from", type=Path, dest="earlier", help="the folder of an earlier run's files")
    parser.add_argument("--engine", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny networks and batches, to rehearse")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the parts")
    options = parser.parse_args()
    started = time.monotonic()
    earlier = options.earlier or out_folder()
    restore(earlier)
    lines = lines_of(options.names, read_rows(earlier / ROWS))
    limit = sum(SECONDS.get(name, PARTS[name].seconds if name in PARTS else 0.0) for name in options.names)
    path = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    variables = {
        "OUT": str(out_folder().resolve()),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PXFAST_TRIAL": "0",
        "TRITON_CACHE_DIR": str(CACHE),
    }
    if options.engine == "cpu":
        variables["OMP_NUM_THREADS"] = "1"  # more threads of torch on tiny networks only wait for each other
    arch = os.environ.get("PXFAST_CUDA_ARCHS") or architecture()
    if arch is not None:
        variables["PXFAST_CUDA_ARCHS"] = arch
    minutes = Minutes(options.engine, options.small, options.python, started + (options.seconds or limit), variables)
    keep({"part": "start", "names": options.names, "seconds": options.seconds or limit})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, minutes.stop)
    minutes.run(lines)
    keep({"part": "over", "seconds": round(time.monotonic() - started, 1)})


if __name__ == "__main__":
    main()
