"""The notebooks run from the first cell to the last, and what is stored in them comes from such a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from support.helpers import SOURCE, environment

NOTEBOOKS = sorted((SOURCE / "examples").glob("*.ipynb"))
LARGEST = 200_000  # bytes, pictures included


@pytest.mark.external
@pytest.mark.process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'pxfast[test]'")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install 'pxfast[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'pxfast[test]'")
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}  # where the kernel runs
    nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources=place).execute()
    shell = [line for cell in notebook.cells for line in cell.source.splitlines() if line.startswith("!")]
    printed = "".join(o.get("text", "") for cell in notebook.cells for o in cell.get("outputs", []))
    assert not shell or not {"Traceback", "error:"} & set(printed.split()), printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_its_results(path: Path) -> None:
    assert path.stat().st_size <= LARGEST
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run it whole, in a new kernel"
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds
    assert "error" not in kinds
    stored = json.dumps([cell["outputs"] for cell in code])
    assert not [word for word in ("/root/", "/home/", "/tmp/", "Traceback") if word in stored]
    assert notebook["cells"][0]["source"][0].startswith("# ")


def test_every_notebook_is_on_the_site() -> None:
    pages = (SOURCE / "docs" / "website" / "mkdocs.yml").read_text(encoding="utf-8")
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS if f"examples/{path.stem}.md" not in pages] == []
