"""What the package exports: the same in its list, in its table of origins, and for type checkers."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import environment

import pxfast
from pxfast.engines.registry import ENGINES, select
from pxfast.pixelcnn.shipped import SHIPPED

NAMES = {
    *("purify", "Purifier", "ADPPurifier", "Defended", "Detector", "verify", "Verification"),
    *("benchmark", "referee", "certify", "certify_l2", "Certificates", "log_prob", "bits_per_dim", "surprise"),
    *("sample", "load", "save", "list_models", "list_engines"),
    *("PixelCNN", "PixelCNNConfig", "__version__"),
}
PACKAGES = {"attacks", "certification", "classifiers", "data", "defences", "evaluation", "serving"}


def names_for_type_checkers() -> dict[str, str]:
    """The names of the block ``if TYPE_CHECKING``, and the modules that they come from."""
    tree = ast.parse(Path(pxfast.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {alias.name: node.module or "" for node in block.body for alias in node.names}


def test_exports_are_the_same_wherever_they_are_listed() -> None:
    assert set(pxfast.__all__) == NAMES | PACKAGES
    assert len(pxfast.__all__) == len(set(pxfast.__all__))
    assert set(pxfast._PACKAGES) == PACKAGES
    assert set(pxfast._ORIGINS) == NAMES - {"__version__"}
    assert names_for_type_checkers() == {**pxfast._ORIGINS, **dict.fromkeys(PACKAGES, "")}
    assert set(pxfast.__all__) <= set(dir(pxfast))


@pytest.mark.parametrize("name", sorted(NAMES - {"__version__"}))
def test_a_name_is_what_its_module_has(name: str) -> None:
    module = importlib.import_module(f"pxfast.{pxfast._ORIGINS[name]}")
    assert getattr(pxfast, name) is getattr(module, name)
    assert getattr(pxfast, name).__name__ == name


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_packages_have_what_they_list(name: str) -> None:
    package = getattr(pxfast, name)
    assert package.__all__
    assert len(package.__all__) == len(set(package.__all__))
    for each in package.__all__:
        assert hasattr(package, each), each


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'pxfast' has no attribute 'purifier'"):
        pxfast.purifier  # noqa: B018


def test_the_package_itself_imports_no_torch() -> None:
    code = "import sys, pxfast; dir(pxfast); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_models_are_listed_with_what_their_files_say() -> None:
    models = pxfast.list_models()
    assert [model.name for model in models] == list(SHIPPED)
    for model in models:
        loaded = pxfast.load(model.name)
        assert model.config == loaded.config
        assert model.image_shape == (loaded.config.channels, *loaded.config.image_size)
        assert model.bytes == SHIPPED[model.name].stat().st_size
        folded = sum(c.weight().numel() + c.b.numel() for _, c in loaded.convolutions())
        assert model.parameters == folded + sum(p.numel() for p in loaded.head.parameters())
        assert 0.0 < model.bits_per_dim < 8.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        models[0].name = "mine"


def test_models_that_are_not_there_are_not_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SHIPPED.files, "cifar10", tmp_path / "missing.safetensors")
    assert [model.name for model in pxfast.list_models()] == ["fashion-mnist"]


def test_engines_are_listed_with_what_auto_picks() -> None:
    engines = {engine.name: engine for engine in pxfast.list_engines()}
    assert list(engines) == list(ENGINES)
    assert [name for name, engine in engines.items() if engine.auto] == [select("auto").name]
    for name, engine in engines.items():
        assert engine.summary == ENGINES[name].summary
        assert engine.reason == ENGINES[name].unavailable()
        assert engine.usable == (engine.reason is None)
        assert (engine.precision is not None) == engine.usable
    assert engines["reference"].usable
