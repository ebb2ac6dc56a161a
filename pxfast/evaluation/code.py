"""Which code computed a result: hashes of source files, and of the compiled module."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .store import file_digest


def code_hash(*parts: str | Callable[..., Any]) -> str:
    """SHA-256, in hexadecimal, of the code of modules, given by name, and of functions.

    Comments, docstrings and layout do not count. A module counts with those of its own package that it imports.
    """
    codes: dict[str, str] = {}
    waiting = list(parts)
    while waiting:
        part = waiting.pop()
        name = part if isinstance(part, str) else f"{part.__module__}:{part.__qualname__}"
        if name not in codes:
            if isinstance(part, str):
                codes[name], imported = _module_code(name)
                waiting += imported
            else:
                codes[name] = _bare(textwrap.dedent(inspect.getsource(part)))
    return hashlib.sha256("\n".join(f"{name}\n{code}" for name, code in sorted(codes.items())).encode()).hexdigest()


@functools.cache
def _module_code(name: str) -> tuple[str, tuple[str, ...]]:
    """A module's code, and the modules of its own package, but for packages, that it imports."""
    specification = importlib.util.find_spec(name)
    if specification is None or specification.origin is None:
        raise ValueError(f"no module {name!r}")
    source = Path(specification.origin).read_text(encoding="utf-8")
    package = name.rpartition(".")[0]
    beside = {path.stem for path in Path(specification.origin).parent.glob("*.py")}
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            imported += [f"{package}.{module}" for module in modules if module in beside]
    return _bare(source), tuple(imported)


def _bare(source: str) -> str:
    """Python source without comments and docstrings, in one layout."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@functools.cache
def compiled_hash() -> str | None:
    """SHA-256, in hexadecimal, of the compiled module's file; None where there is none."""
    specification = importlib.util.find_spec("pxfast._C")
    return None if specification is None or specification.origin is None else file_digest(specification.origin)
