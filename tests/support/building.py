"""What setup.py would run to build the CPU engine, for any machine and compiler."""

from __future__ import annotations

import platform
import re
import runpy
import shlex
import sys
import types
from pathlib import Path

import pytest

from .helpers import SOURCE


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
        filled = command.replace("$flags", flags).replace("$out", output).replace("$in", shlex.quote(source))
        found[Path(source).name] = shlex.split(filled)
    return found
