"""Which code computed a result: hashes of source files, and of the compiled module.

The key of a stored result holds the hash of all code that it depends on. A hash that misses a module lets a rerun take
a result of older code without a word, so imports are followed wherever they stand: at any level, inside functions,
and through ``importlib.import_module`` with a constant name.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from .files import file_digest

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


def import_path() -> list[str]:
    """The folders that modules come from, for another process. Python passes over what else is in ``sys.path``."""
    return [entry for entry in sys.path if isinstance(entry, str)]


def code_hash(*parts: str | Callable[..., Any], without: Collection[str] = ()) -> str:
    """SHA-256, in hexadecimal, of all code of its own package that the parts depend on.

    parts: names of modules, which count whole; and functions or classes, which count with what they name, whether it
    stands in the same module or is imported. Each module that is reached counts whole, with all that it imports; a
    compiled module counts by its file. Imports for type checkers do not count, nor do comments, docstrings, layout and
    other packages. A module's parent packages count only where a name is taken from them.
    without: modules that are not followed, because what they find is part of the key in another way.

    Raises ValueError for a module that does not exist.
    """
    return _hash(parts, frozenset(without))


@functools.cache
def _hash(parts: tuple[str | Callable[..., Any], ...], without: frozenset[str]) -> str:
    """What :func:`code_hash` gives. Once for the process, as a process reads its code once."""
    codes = "\n".join(f"{name}\n{code}" for name, code in sorted(_closure(parts, without)))
    return hashlib.sha256(codes.encode()).hexdigest()


def _closure(parts: Collection[str | Callable[..., Any]], without: Collection[str]) -> set[tuple[str, str]]:
    """Names and code of all that the parts depend on: modules, and definitions as MODULE:NAME."""
    codes: dict[str, str] = {}
    waiting = [
        part if isinstance(part, str) else f"{part.__module__}:{part.__qualname__.partition('.')[0]}" for part in parts
    ]
    while waiting:
        name = waiting.pop()
        if name in codes or name in without:
            continue
        module, _, definition = name.partition(":")
        if definition:
            source = _read(module)
            node = source.definitions[definition]
            codes[name] = _bare(node)
            named = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
            waiting += [f"{module}:{each}" for each in sorted(named & source.definitions.keys())]
            waiting += [target for each in sorted(named & source.names.keys()) for target in source.names[each]]
            waiting += _imported(node, source)
        elif (file := _file(module)) is None:
            raise ValueError(f"no module {module!r}")
        elif file.suffix != ".py":
            codes[name] = file_digest(file)
        else:
            source = _read(module)
            codes[name] = source.code
            waiting += source.imports
    return set(codes.items())


@dataclasses.dataclass(frozen=True)
class _Source:
    """A module's source, read.

    package: what its relative imports start from. code: bare. imports: the modules of its own package that it imports
    anywhere. names: for each name that an import binds at the top of the module, where it leads. definitions: the
    functions, classes and constants of the module by name.
    """

    package: str
    code: str
    imports: tuple[str, ...]
    names: dict[str, tuple[str, ...]]
    definitions: dict[str, Definition]


@functools.cache
def _read(module: str) -> _Source:
    """A module of Python source, parsed. ValueError where there is none."""
    file = _file(module)
    if file is None:
        raise ValueError(f"no module {module!r}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names: dict[str, tuple[str, ...]] = {}
    definitions: dict[str, Definition] = {}
    for node in _executed(tree, into_functions=False):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for name, target in _targets(node, package):
                names[name] = (*names.get(name, ()), target)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            definitions[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            for assigned in node.targets if isinstance(node, ast.Assign) else [node.target]:
                definitions |= {each.id: node for each in ast.walk(assigned) if isinstance(each, ast.Name)}
    source = _Source(package, _bare(tree), (), names, definitions)
    return dataclasses.replace(source, imports=tuple(sorted(set(_imported(tree, source)))))


def _imported(tree: ast.AST, source: _Source) -> Iterator[str]:
    """The modules of its own package that a piece of a module's source imports, lazily or not."""
    for node in _executed(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (target for _, target in _targets(node, source.package))
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            name = node.args[0] if node.args else None
            if function == "import_module" and isinstance(name, ast.Constant) and isinstance(name.value, str):
                target = importlib.util.resolve_name(name.value, source.package)
                if _is_own(target, source.package) and _file(target) is not None:
                    yield target


def _executed(tree: ast.AST, *, into_functions: bool = True) -> Iterator[ast.AST]:
    """The nodes below ``tree``, but for what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (found for other in node.orelse for found in (other, *_executed(other)))
            continue
        yield node
        if into_functions or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _executed(node, into_functions=into_functions)


def _targets(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, str]]:
    """Names that an import binds, and the modules of its own package that they come from."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if _is_own(alias.name, package):
                yield alias.asname or alias.name.partition(".")[0], alias.name
        return
    module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
    if _is_own(module, package):
        for alias in node.names:
            yield alias.asname or alias.name, _origin(module, alias.name)


def _origin(module: str, name: str) -> str:
    """The module that ``from module import name`` takes its value from: packages pass on what they import."""
    if _file(f"{module}.{name}") is not None:
        return f"{module}.{name}"
    file = _file(module)
    if file is not None and file.name == "__init__.py":
        origins = set(_read(module).names.get(name, ()))
        if len(origins) == 1:
            return origins.pop()
    return module


def _is_own(module: str, package: str) -> bool:
    return module.partition(".")[0] == package.partition(".")[0]


@functools.cache
def _file(module: str) -> Path | None:
    """The file of a module; None where there is none. Imports its parent packages."""
    try:
        specification = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return None if specification is None or not specification.origin else Path(specification.origin)


def _bare(tree: ast.AST) -> str:
    """Python source without comments and docstrings, in one layout."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and (
            ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
