"""The floors of the house: imports go down, and nowhere in a circle."""

from __future__ import annotations

import graphlib
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter import api
from support.helpers import SOURCE, environment

LINTER = Path(sys.executable).with_name("lint-imports")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports of the package, lazy ones and those for type checkers among them."""
    return grimp.build_graph("pxfast", cache_dir=None)


def test_no_import_goes_up() -> None:
    done = subprocess.run([LINTER, "--no-cache"], cwd=SOURCE, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "Contracts: 2 kept, 0 broken." in done.stdout


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    list(graphlib.TopologicalSorter(imported).static_order())  # CycleError names the circle


def test_every_folder_has_its_floor(graph: grimp.ImportGraph) -> None:
    (layers, _) = api.read_configuration(str(SOURCE / "pyproject.toml"))["contracts_options"]
    named = {part.strip() for layer in layers["layers"] for part in layer.split("|")}
    found = {module for module in graph.find_children("pxfast") if graph.find_children(module)}
    assert found == named
    loose = {path.stem for path in Path(SOURCE / "pxfast").glob("*.py")}
    assert loose == {"__init__"}
