"""Hashes of code: what changes the key of a stored result, and what does not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pxfast.attacks import ATTACKS
from pxfast.base import code
from pxfast.base.code import code_hash
from pxfast.evaluation import stages
from pxfast.evaluation.defences import build_adp, build_purifier
from pxfast.evaluation.networks import ELSEWHERE
from pxfast.evaluation.pipeline import attack_code

PACKAGE = {
    "__init__.py": "from .top import one\n",
    "top.py": """
        from typing import TYPE_CHECKING
        import importlib
        import json
        from .inner import passed_on
        from .inner.deep import two
        if TYPE_CHECKING:
            from .for_types import Kind
        SCALE = 3
        UNUSED = 4
        def one():
            "Text."
            from .lazy import three  # when it is needed
            return two() + three() + SCALE + passed_on()
        def other():
            return importlib.import_module("package.named").four()
        class Both:
            def call(self): return one() + other()
    """,
    "lazy.py": "def three(): return 3\n",
    "named.py": "def four(): return 4\n",
    "for_types.py": "class Kind: pass\n",
    "outside.py": "from .top import one\n",
    "inner/__init__.py": "from .passing import passed_on\nfrom .unused import nothing\n",
    "inner/passing.py": "def passed_on(): return 1\n",
    "inner/unused.py": "def nothing(): pass\n",
    "inner/deep.py": "from .. import upward\ndef two(): return upward.value\n",
    "upward.py": "value = 2\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A package of several levels. Takes edits, text to replace by file, and gives the hash of some parts."""
    monkeypatch.syspath_prepend(tmp_path)

    def hash_of(*parts: str, edits: dict[str, tuple[str, str]] | None = None) -> str:
        import textwrap

        for name, text in PACKAGE.items():
            text = textwrap.dedent(text)
            if name in (edits or {}):
                old, new = edits[name]
                assert old in text
                text = text.replace(old, new)
            file = tmp_path / "package" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        forget()
        found = [
            getattr(importlib.import_module("package.top"), part[1:]) if part[0] == ":" else part for part in parts
        ]
        return code_hash(*found)

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "package"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        code._hash.cache_clear()
        code._read.cache_clear()
        code._file.cache_clear()

    yield hash_of
    forget()


EDITS = {
    "its own": {"top.py": ("SCALE = 3", "SCALE = 5")},
    "two levels down": {"inner/deep.py": ("upward.value", "upward.value + 1")},
    "by way of the parent": {"upward.py": ("2", "7")},
    "lazy": {"lazy.py": ("3", "5")},
    "passed on by a package": {"inner/passing.py": ("1", "6")},
}


@pytest.mark.parametrize("where", EDITS)
def test_an_edit_anywhere_in_the_closure_changes_the_hash(package, where: str) -> None:
    for part in ("package.top", "package.outside", ":one", ":Both"):
        assert package(part) != package(part, edits=EDITS[where]), part


def test_a_module_imported_by_name_counts(package) -> None:
    edit = {"named.py": ("return 4", "return 5")}
    for part, follows in (("package.top", True), (":other", True), (":Both", True), (":one", False)):
        assert (package(part) != package(part, edits=edit)) is follows, part


def test_what_is_outside_or_means_nothing_does_not_count(package) -> None:
    for edit in (
        {"outside.py": ("one", "other")},
        {"for_types.py": ("pass", "size = 1")},
        {"inner/unused.py": ("pass", "return 1")},
        {"top.py": ("  # when it is needed", "")},
        {"top.py": ('"Text."', '"Other."')},
        {"top.py": ("return two()", "return  two()")},
    ):
        for part in ("package.top", ":one", ":Both"):
            assert package(part) == package(part, edits=edit), edit
    # of a module only what a function names
    assert package(":one") == package(":one", edits={"top.py": ("UNUSED = 4", "UNUSED = 5")})
    assert package("package.top") != package("package.top", edits={"top.py": ("UNUSED = 4", "UNUSED = 5")})


def test_modules_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match=r"no module .pxfast\.nothing."):
        code_hash("pxfast.nothing")


@pytest.fixture
def edited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the hashes see a module of pxfast with a line more."""
    find, read = code._file, code._read

    def edit(module: str) -> None:
        original = find(module)
        assert original is not None
        changed = tmp_path / original.name
        changed.write_bytes(original.read_bytes() + b"\n_changed = 1\n")
        monkeypatch.setattr(code, "_file", lambda name: changed if name == module else find(name))
        monkeypatch.setattr(code, "_read", lambda name: read.__wrapped__(name) if name == module else read(name))
        code._hash.cache_clear()

    yield edit
    code._hash.cache_clear()


@pytest.mark.parametrize(
    ("attack", "module", "depends"),
    [
        ("unrolled-bim", "pxfast.pixeldefend.relaxed", True),
        ("unrolled-bim", "pxfast.engines.schedule", True),
        ("deepfool", "pxfast.attacks.gradients", True),
        ("fgsm", "pxfast.pixeldefend.relaxed", False),
        ("deepfool", "pxfast.attacks.carlini_wagner", False),
        ("bim", "pxfast.pixeldefend.detection", False),
        ("unrolled-bim", "pxfast.evaluation.run", False),
        ("likelihood-aware", "pxfast.pixelcnn.likelihood", True),
        ("likelihood-aware", "pxfast.pixeldefend.statistics", False),
    ],
)
def test_the_key_of_an_attack_changes_with_the_code_that_it_runs(
    edited, attack: str, module: str, depends: bool
) -> None:
    before = attack_code(attack)
    edited(module)
    assert (attack_code(attack) != before) is depends


@pytest.mark.parametrize(
    ("module", "depends"),
    [
        ("pxfast.pixelcnn.heads", True),
        ("pxfast.pixelcnn.likelihood", True),
        ("pxfast.adp.purifier", False),
        ("pxfast.engines.schedule", False),
        ("pxfast.pixeldefend.purify", False),
    ],
)
def test_the_key_of_a_likelihood_follows_the_density_model_alone(edited, module: str, depends: bool) -> None:
    before = code_hash(stages.likelihood, without=ELSEWHERE)
    edited(module)
    assert (code_hash(stages.likelihood, without=ELSEWHERE) != before) is depends


def modules_of(*parts: str | Callable) -> set[str]:
    """The names of the modules that the hash of the parts takes whole."""
    return {name for name, _ in code._closure(parts, frozenset(ELSEWHERE)) if ":" not in name}


def test_a_defence_by_the_cpu_engine_depends_on_the_compiled_module_alone_of_all_engines() -> None:
    modules = modules_of(build_purifier, "pxfast.engines.cpu")
    assert {"pxfast._C", "pxfast.pixeldefend.purify", "pxfast.engines.choosers", "pxfast.pixelcnn.heads"} <= modules
    assert not modules & {"pxfast.engines.triton", "pxfast.engines.cuda", "pxfast.pixeldefend.detection"}
    assert "pxfast.adp.score_network" in modules_of(build_adp)
    assert "pxfast.pixelcnn.likelihood" in modules_of(stages.likelihood)


def test_every_attack_has_a_hash_of_its_code() -> None:
    assert len({attack_code(name) for name in ATTACKS}) > 5
