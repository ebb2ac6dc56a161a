"""What type checkers say of pxfast: to its users, and of whether each name that they can import has a known type."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.helpers import SOURCE, environment

pytestmark = pytest.mark.process

USER_CODE = Path(__file__).with_name("user_code.py")


def check(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """What a type checker, run by its module's name, says in the interpreter that runs the tests."""
    # pyright looks for the libraries of the ``python`` that it finds
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=SOURCE, env=environment(PATH=path), capture_output=True, text=True
    )


def pyright(*arguments: str | Path) -> dict[str, Any]:
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("pyright is not installed")
    done = check("pyright", "--outputjson", *arguments)
    assert done.returncode in (0, 1), done.stdout[-1000:] + done.stderr[-1000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def mypy(path: Path) -> subprocess.CompletedProcess[str]:
    return check("mypy", path)  # strict by pyproject.toml; what it knows of the libraries is kept for `mypy` alone


@pytest.fixture
def wrong_code(tmp_path: Path) -> Path:
    """User code that takes an array for the tensor that it is."""
    path = tmp_path / "wrong_code.py"
    path.write_text(USER_CODE.read_text().replace("result: Tensor = pxfast", "result: Array = pxfast"))
    return path


def test_mypy_reads_user_code(wrong_code: Path) -> None:
    done = mypy(USER_CODE)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = mypy(wrong_code)
    assert wrong.returncode == 1
    assert "Tensor" in wrong.stdout


def test_pyright_reads_user_code(wrong_code: Path) -> None:
    assert pyright(USER_CODE)["generalDiagnostics"] == []
    assert pyright(wrong_code)["generalDiagnostics"] != []


def test_every_name_that_can_be_imported_has_a_known_type() -> None:
    report = pyright("--verifytypes", "pxfast", "--ignoreexternal")["typeCompleteness"]
    assert Path(report["packageRootDirectory"]) == SOURCE / "pxfast"
    exported = [symbol for symbol in report["symbols"] if symbol["isExported"]]
    assert len(exported) > 1000
    unknown = [symbol["name"] for symbol in exported if not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]]
    assert unknown == []
    assert report["completenessScore"] == 1.0
