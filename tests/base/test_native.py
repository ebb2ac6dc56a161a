"""The compiled module: which states of it are noticed, and what is said of them."""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import pytest
from support.engines import MISSING
from support.helpers import SOURCE

from pxfast.base import native
from pxfast.base.sources import digest_of


def checkout(folder: Path) -> Path:
    """A folder that looks like a checkout, with two sources."""
    (folder / "csrc" / "cpu").mkdir(parents=True)
    (folder / "setup.py").touch()
    (folder / "csrc" / "bindings.cpp").write_text("int a;\n")
    (folder / "csrc" / "cpu" / "a.h").write_text("int b;\n")
    return folder


def found(monkeypatch: pytest.MonkeyPatch, outcome: object, root: Path) -> tuple[object, str | None]:
    """What ``load`` gives where importing the module gives, or raises, ``outcome``."""

    def importing(name: str) -> object:
        assert name == "pxfast._C"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(importlib, "import_module", importing)
    return native.load(root)


def test_a_module_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = checkout(tmp_path)
    fitting = types.SimpleNamespace(sources=digest_of(root / "csrc"))
    assert found(monkeypatch, fitting, root) == (fitting, None)
    (root / "csrc" / "cpu" / "a.h").write_text("int c;\n")
    for stale in (fitting, types.SimpleNamespace()):  # the second is of a time before there was a digest
        module, problem = found(monkeypatch, stale, root)
        assert module is None
        assert problem is not None
        assert "was built from other sources than csrc/ has now; build it anew with `pip install -e .`" in problem


def test_where_no_sources_lie_beside_it_nothing_is_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = types.SimpleNamespace(sources="of a wheel")
    assert found(monkeypatch, module, tmp_path) == (module, None)
    (checkout(tmp_path) / "setup.py").unlink()  # the csrc/ of whatever else is installed
    assert found(monkeypatch, module, tmp_path) == (module, None)


def test_a_missing_module_and_one_that_does_not_load_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = ModuleNotFoundError("No module named 'pxfast._C'", name="pxfast._C")
    _, problem = found(monkeypatch, missing, tmp_path)
    assert problem == ("the compiled module is missing (No module named 'pxfast._C'); build it with `pip install .`")
    _, problem = found(monkeypatch, ImportError("GLIBCXX_3.4.99 not found"), tmp_path)
    assert problem is not None
    assert "is there, but does not load (GLIBCXX_3.4.99 not found)" in problem


def test_a_digest_is_of_the_names_and_contents_of_sources_alone(tmp_path: Path) -> None:
    folder = checkout(tmp_path) / "csrc"
    first = digest_of(folder)
    (folder / "cpu" / "a.h~").write_text("an editor's")
    assert digest_of(folder) == first
    (folder / "cpu" / "a.h").rename(folder / "cpu" / "b.h")
    assert digest_of(folder) != first


@pytest.mark.skipif("cpu" in MISSING, reason="there is no compiled module")
def test_the_module_here_is_of_the_sources_here() -> None:
    if not (SOURCE / "csrc").is_dir() or native.ROOT != SOURCE:
        pytest.skip("the package is not beside its sources")
    assert native._C.sources == digest_of(SOURCE / "csrc")
