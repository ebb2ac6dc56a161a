"""What setup.py would run to build the CPU engine, for any machine and compiler, and the objects that it makes."""

from __future__ import annotations

import hashlib
import platform
import re
import runpy
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from .helpers import SOURCE, made_once

PORTABLE = {"program.cpp", "sources.cpp", "engine.cpp", "parallel.cpp", "isa_portable.cpp"}


def compile_commands(compiler: str, machine: str) -> dict[str, list[str]]:
    """What setup.py would run on ``machine`` for each source of the CPU engine, its output named after the source.

    compiler: as $CXX has it.
    """
    setuptools = pytest.importorskip("setuptools", reason="setup.py needs setuptools")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **options: None)
        patch.setattr(platform, "machine", lambda: machine)
        # only the bindings, which are not compiled here, see pybind11; pip installs it for the build alone
        patch.setitem(sys.modules, "pybind11", types.SimpleNamespace(get_include=lambda: ""))
        patch.setenv("CXX", compiler)
        patch.setenv("PXFAST_CUDA", "0")
        patch.delenv("PXFAST_SANITIZE", raising=False)
        text = runpy.run_path(str(SOURCE / "setup.py"))["ninja_file"](Path("_C.so"))
    command = re.search(r"rule cxx\n  command = (.*)", text)[1]
    found = {}
    for output, source, flags in re.findall(r"build ((?:common|cpu)_\w+\.o): cxx (.+)\n  flags = (.*)", text):
        source = re.sub(r"\$(.)", r"\1", source)
        variables = {"flags": expanded(flags), "out": output, "in": shlex.quote(source)}
        found[Path(source).name] = shlex.split(expanded(command, **variables))
    return found


def expanded(text: str, **variables: str) -> str:
    """A text of ninja's with the values of its variables; one that is not known is empty."""
    return re.sub(r"\$(\$|\w+)", lambda found: "$" if found[1] == "$" else variables.get(found[1], ""), text)


def portable_commands(compiler: str, *more: str) -> dict[str, list[str]]:
    """Those of the sources that every machine compiles, ``more`` for each; no other instruction set is linked."""
    return {
        name: [*(flag for flag in command if not flag.startswith("-DPXFAST_HAS_")), *more]
        for name, command in compile_commands(compiler, platform.machine()).items()
        if name in PORTABLE
    }


def object_of(factory: pytest.TempPathFactory, command: list[str]) -> tuple[Path, str]:
    """The object that a command makes, once for all tests and workers of a run, and what the compiler said of it."""

    def make(folder: Path) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (folder / "said").write_text(done.stderr)

    folder = made_once(factory, f"object-{hashlib.sha256(repr(command).encode()).hexdigest()[:16]}", make)
    return folder / command[command.index("-o") + 1], (folder / "said").read_text()
