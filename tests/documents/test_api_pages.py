"""The reference has every exported name, and what it shows explains every parameter."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_origin

import pytest
from support.helpers import SOURCE

PACKAGES = (
    "pxfast",
    "pxfast.attacks",
    "pxfast.certification",
    "pxfast.classifiers",
    "pxfast.data",
    "pxfast.defences",
    "pxfast.evaluation",
    "pxfast.serving",
)
PAGES = sorted((SOURCE / "docs" / "api").glob("*.md"))
SELF = ("self", "cls")
SHAPE = r"\((?:N|n|C|S)\b[\w, /*]*\)"  # such as (N, C, H, W) or (N,)


def documented() -> set[str]:
    """The names that the pages of the reference show; a package's stands for all functions and classes it exports."""
    return {name for page in PAGES for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), flags=re.MULTILINE)}


def exported() -> Iterator[tuple[str, str, object]]:
    """Package, name and object of everything that the packages export."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):  # that there is one: test_packages_export_what_they_list
            yield package, name, getattr(module, name)


def callables() -> dict[str, object]:
    """Every exported function and class, and the public methods that pxfast gives to the latter, by dotted name."""
    found: dict[str, object] = {}
    for package, name, each in exported():
        if inspect.isfunction(each):
            found[f"{package}.{name}"] = each
        elif inspect.isclass(each) and get_origin(each) is None:  # Python 3.10 calls an alias a class
            found[f"{package}.{name}"] = each
            for base in each.__mro__:
                if base.__module__.startswith("pxfast"):
                    for method, function in vars(base).items():
                        function = getattr(function, "__func__", function)  # of a classmethod
                        if inspect.isfunction(function) and (not method.startswith("_") or method == "__call__"):
                            found.setdefault(f"{package}.{name}.{method}", function)
    return found


CALLABLES = callables()


def owner(name: str) -> object | None:
    """The exported class of a method; None for what is no method."""
    return CALLABLES.get(name.rpartition(".")[0])


def own_text(each: object) -> str:
    """The docstring of a function, or those of a class and its constructor."""
    constructor = each.__init__ if inspect.isclass(each) else None
    return "\n".join((inspect.getdoc(part) or "") for part in (each, constructor) if part is not None)


def referred(reference: str, name: str) -> object | None:
    """The object that a reference such as :func:`pxfast.purify` means in the docstring of ``name``."""
    scopes = [sys.modules[CALLABLES[name].__module__], sys.modules["pxfast"], owner(name)]
    path = reference.split(".")
    for scope in scopes if path[0] != "pxfast" else [sys.modules["pxfast"]]:
        each: object | None = scope
        for part in path[path[0] == "pxfast" :]:
            each = getattr(each, part, None)
        if each is not None:
            return each
    return None


def explanation(name: str) -> str:
    """What the reference says of a callable: its docstring, a method's class's, and those that either refers to."""
    text = own_text(CALLABLES[name]) + (own_text(owner(name)) if owner(name) is not None else "")
    further = [referred(reference, name) for reference in re.findall(r":(?:func|meth|class):`([\w.]+)`", text)]
    return "\n".join((text, *(own_text(each) for each in further if each is not None)))


def parameters(name: str) -> dict[str, str]:
    """What a caller names, and its type: a function's or a constructor's parameters, or a dataclass's fields."""
    each = CALLABLES[name]
    if dataclasses.is_dataclass(each):
        return {field.name: str(field.type) for field in dataclasses.fields(each) if not field.name.startswith("_")}
    function = each.__init__ if inspect.isclass(each) else each
    if inspect.isclass(each) and function is object.__init__:
        return {}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = inspect.signature(function).parameters.values()
    return {each.name: str(each.annotation) for each in known if each.kind not in kinds and each.name not in SELF}


def has_attribute(path: str, attribute: str) -> bool:
    """Whether a module has an attribute; by its source where the library that it is for is not installed."""
    try:
        return hasattr(importlib.import_module(path), attribute)
    except ImportError:
        source = Path(importlib.util.find_spec(path).origin).read_text(encoding="utf-8")
        return attribute in {getattr(node, "name", None) for node in ast.parse(source).body}


def test_every_exported_name_is_on_a_page() -> None:
    shown = documented()
    missing = [
        f"{package}.{name}"
        for package, name, each in exported()
        if f"{package}.{name}" not in shown and not (package in shown and callable(each))
    ]
    assert not missing, f"docs/api/ lacks ':::' lines for {', '.join(missing)}"


def test_every_page_shows_what_exists() -> None:
    for name in documented():
        path, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ImportError:
            assert has_attribute(path, attribute), f"docs/api/ shows {name}, which does not exist"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_export_what_they_list(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    assert sorted(set(module.__all__)) == sorted(module.__all__), f"{package}.__all__ names something twice"
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_docstrings_explain_every_parameter(name: str) -> None:
    assert inspect.getdoc(CALLABLES[name]), f"{name} has no docstring"
    text = explanation(name)
    missing = [parameter for parameter in parameters(name) if not re.search(rf"\b{parameter}\b", text)]
    assert not missing, f"the docstring of {name} says nothing of its parameters {', '.join(missing)}"


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_docstrings_say_the_shapes_of_tensors(name: str) -> None:
    tensors = [each for each, kind in parameters(name).items() if re.search(r"\b(Tensor|Images|ndarray)\b", kind)]
    assert not tensors or re.search(SHAPE, explanation(name)), (
        f"the docstring of {name} does not say the shape of {', '.join(tensors)}, such as (N, C, H, W), nor where it is"
    )


def test_every_module_of_the_packages_has_a_docstring() -> None:
    for package in PACKAGES:
        for name, each in vars(importlib.import_module(package)).items():
            if isinstance(each, ModuleType) and each.__name__.startswith("pxfast"):
                assert each.__doc__, f"{package}.{name} has no docstring"
