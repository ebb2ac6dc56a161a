"""Whether a GPU's kernels are relied upon: what a trial of them found, once a machine.

A kernel that is wrong for a GPU or a driver can hang, or spoil every later call of its process. So before the first use
of an engine of a GPU by engine='auto', and of the fused likelihood, another process tries them: the program
``pxfast.pixeldefend.trial``, which is started by its name and imported by nobody. The verdict is kept in
``record_file()`` for this GPU, these versions, this code and what the environment and the file of tiles have a part in.
A trial that is ended from outside, for memory or for time, is no verdict.

Environment: ``PXFAST_TRIAL=0`` trusts the kernels untried.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..base import environment
from ..base.code import import_path
from ..base.kept import read_kept, write_kept

_log = logging.getLogger(__name__)

FORMAT = "pxfast-trials"
LIKELIHOOD = "likelihood"  # what is tried that is no engine
SECONDS = 120.0  # that a trial may take
COMPILING_SECONDS = 900.0  # where Triton compiles for minutes at first
COMPILED_ON_USE = ("triton", LIKELIHOOD)
ENDED_FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP}  # the first: memory ran out
# by its package's name, not by this file's place, which a checkout reaches by a link
PACKAGE = Path(next(iter(importlib.import_module(__name__.partition(".")[0]).__path__)))
PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from pxfast.pixeldefend.trial import main
sys.exit(main(sys.argv[2:]))
"""
WRONG, UNTRIED = 3, 4  # exit codes of a trial: the kernels are at fault; the circumstances are


def problem(name: str, device: int | None = None) -> str | None:
    """What the trial of an engine, or of the likelihood, on a GPU found wrong, now or earlier; or None.

    device: the GPU's number; None: torch's current one.
    A trial that could not be held, such as on a GPU that another process has for itself, is a problem too, but is held
    again by the next process.
    """
    if not environment.trial():
        return None
    return _problem(name, torch.cuda.current_device() if device is None else device, tuple(choices(name)))


@functools.cache
def _problem(name: str, device: int, chosen: tuple[str, ...]) -> str | None:
    """chosen: :func:`choices`, another of which is tried anew."""
    key = _key(name, device)
    trials = _read_record()
    if key not in trials:
        _log.warning("trying the kernels of %s on %s, once; this may take minutes", name, _gpu(device))
        verdict, found = run(command_of(name, device), seconds_of(name))
        if not verdict:
            return found
        trials[key] = found
        _write_record({**_read_record(), key: found})
    return trials[key]


def command_of(name: str, device: int) -> list[str]:
    """What starts a trial: Python, with modules from where this process has them."""
    return [sys.executable, "-c", PROGRAM, json.dumps(import_path()), name, str(device)]


def seconds_of(name: str) -> float:
    """How long the trial of an engine, or of the likelihood, may take."""
    return COMPILING_SECONDS if name in COMPILED_ON_USE else SECONDS


def run(command: Sequence[str], seconds: float) -> tuple[bool, str | None]:
    """Hold a trial. Gives whether it came to a verdict, and what is wrong, None where nothing is."""
    try:
        done = subprocess.run(
            command,
            env=environment.of_a_trial(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return False, f"it did not end within {seconds:g} seconds"
    except OSError as error:
        return False, f"a process to try it in did not start: {error}"
    last = (done.stdout.strip() or done.stderr.strip()).rpartition("\n")[2]
    if done.returncode == 0:
        return True, None
    if done.returncode == UNTRIED:
        return False, f"it could not be tried: {last}"
    if done.returncode in ENDED_FROM_OUTSIDE:
        return False, f"its process was ended by {signal.Signals(-done.returncode).name}: {last}"
    return True, last if done.returncode == WRONG else f"its process ended with {done.returncode}: {last}"


def record_file() -> Path:
    """Where verdicts are kept: pxfast/trials.json where the user keeps caches. It may be deleted at any time."""
    return environment.cache_folder() / "trials.json"


def _read_record() -> dict[str, str | None]:
    """Problems by key, None where there was none."""
    return read_kept(record_file(), FORMAT, "trials", lambda value: value is None or isinstance(value, str))


def _write_record(trials: dict[str, str | None]) -> None:
    """Where nothing can be written, the next process holds its own trial."""
    write_kept(record_file(), FORMAT, "trials", trials)


def _gpu(device: int) -> str:
    properties: Any = torch.cuda.get_device_properties(device)
    return f"{properties.name} (compute capability {properties.major}.{properties.minor})"


def _key(name: str, device: int) -> str:
    """All that a verdict depends on."""
    versions = [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}", f"ROCm {torch.version.hip}"]
    with contextlib.suppress(metadata.PackageNotFoundError):
        versions.append(f"triton {metadata.version('triton')}")
    return ", ".join([name, _gpu(device), f"driver {_driver()}", *versions, *choices(name), f"code {_code()}"])


def choices(name: str) -> list[str]:
    """What the user has a say in of an engine's kernels: the environment and, of Triton's, the file of tiles."""
    if name == "cuda":
        return [f"wgmma {int(environment.cuda_wgmma())}"]
    try:
        tiles = hashlib.sha256(environment.tiles_file().read_bytes()).hexdigest()[:16]
    except OSError:
        tiles = "none"
    return [f"tiles {tiles}", *environment.triton_settings()]


def _driver() -> str:
    """The version of NVIDIA's or AMD's kernel module, where Linux tells it."""
    for path in ("/sys/module/nvidia/version", "/sys/module/amdgpu/version"):
        with contextlib.suppress(OSError):
            return Path(path).read_text().strip()
    return "unknown"


@functools.cache
def _code() -> str:
    """A hash of the engines, the kernels, what both rest on, and the compiled module."""
    compiled = importlib.util.find_spec(f"{PACKAGE.name}._C")
    files = [
        *sorted(PACKAGE.glob("engines/*.py")),
        *sorted(PACKAGE.glob("kernels/*.py")),
        *sorted(PACKAGE.glob("pixelcnn/*.py")),
    ]
    if compiled is not None and compiled.origin is not None:
        files.append(Path(compiled.origin))
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
