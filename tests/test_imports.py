"""The floors of the house: imports go down, and nowhere in a circle."""

from __future__ import annotations

import graphlib
from pathlib import Path

import pytest
from support.helpers import SOURCE

grimp = pytest.importorskip("grimp", reason="import-linter reads the imports")
api = pytest.importorskip("importlinter.api", reason="import-linter holds the contracts")  # registers their types
use_cases = pytest.importorskip("importlinter.application.use_cases", reason="import-linter holds the contracts")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """All imports of the package, lazy ones and those for type checkers among them."""
    return grimp.build_graph("pxfast", cache_dir=None)


def test_no_import_goes_up(capsys: pytest.CaptureFixture[str]) -> None:
    kept = use_cases.lint_imports(config_filename=str(SOURCE / "pyproject.toml"), cache_dir=None)
    said = capsys.readouterr().out
    assert kept, said[-3000:]
    assert "Contracts: 2 kept, 0 broken." in said


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    list(graphlib.TopologicalSorter(imported).static_order())  # CycleError names the circle


def test_every_folder_has_its_floor(graph: grimp.ImportGraph) -> None:
    (layers, _) = api.read_configuration(str(SOURCE / "pyproject.toml"))["contracts_options"]
    named = {part.strip() for layer in layers["layers"] for part in layer.split("|")}
    found = {module for module in graph.find_children("pxfast") if graph.find_children(module)}
    assert found == named
    loose = {path.stem for path in Path(SOURCE / "pxfast").glob("*.py")}
    assert loose == {"__init__", "__main__"}  # the latter is python -m pxfast, which nobody imports
