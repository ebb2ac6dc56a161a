"""What ``pip install -e .`` leaves behind: a path that type checkers read, and no import hook, which they don't run."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.helpers import SOURCE

pytestmark = pytest.mark.process

BUILD = """
import sys, setuptools
from distutils.core import run_setup

distribution = run_setup("setup.py", ["-q", "editable_wheel", "--dist-dir", sys.argv[1]], stop_after="commandline")
distribution.ext_modules = []  # they take minutes, and are not asked about
distribution.get_option_dict("egg_info")["egg_base"] = "test", sys.argv[1]
distribution.run_commands()
"""


def test_an_editable_install_is_a_path(tmp_path: Path) -> None:
    if not (SOURCE / "pxfast" / "kernels").exists():
        pytest.skip("this is no checkout, which has the link pxfast/kernels")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path)], cwd=SOURCE, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" not in name}
    ((name, text),) = installed.items()
    assert name.endswith(".pth")
    assert text.splitlines() == [str(SOURCE)]
