"""A user's own classifier by name, 'package.module:name'; the current folder is searched first."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

FORM = "expected a classifier as package.module:name, such as my_package.my_module:make_model"
MOST_LISTED = 10


def load_model(text: str) -> nn.Module:
    """The module that ``text`` names, or what the function or class of this name gives when it is called.

    The current folder is searched before installed packages, as ``python -m`` does it. ValueError for a text of another
    form and for a name that the module lacks, ImportError for a module that is not there or fails, RuntimeError, with
    its own words, for a function that fails, TypeError where what comes is no nn.Module.
    """
    module_name, colon, name = text.partition(":")
    is_file = module_name.endswith(".py") or "/" in module_name
    if not colon or is_file or not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise ValueError(f"{FORM}, got {text!r}{': a file is no name of a module' if is_file else ''}")
    found: object = _imported(module_name)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [each for each, value in vars(found).items() if callable(value) and not each.startswith("_")]
            known = ", ".join(names[:MOST_LISTED]) or "nothing that can be called"
            raise ValueError(f"{text}: there is no {part!r} in {module_name}; it has {known}")
        found = getattr(found, part)
    return _made(text, found)


def _imported(name: str) -> object:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ImportError(f"there is no module {name!r}, neither in {here} nor installed") from None
        raise ImportError(f"{name} imports {error.name!r}, which is not installed") from error
    except Exception as error:  # whatever a user's module does
        raise ImportError(f"{name} can't be imported: {type(error).__name__}: {error}") from error


def _made(text: str, found: object) -> nn.Module:
    from torch import nn

    if not isinstance(found, nn.Module) and callable(found):
        needed = [
            parameter.name
            for parameter in inspect.signature(found).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if needed:
            raise TypeError(f"{text} needs arguments ({', '.join(needed)}): name a function that takes none")
        try:
            found = found()
        except Exception as error:
            raise RuntimeError(f"{text} failed: {type(error).__name__}: {error}") from error
    if not isinstance(found, nn.Module):
        raise TypeError(f"{text}: expected an nn.Module, or a function that gives one, got {type(found).__name__}")
    return found
