"""What a module computes with, as one hash: a store's results of one module are never taken for those of another.

Everything that a module's function can depend on is followed: parameters, buffers, plain attributes, the order of
submodules, hooks, the code of its own and its submodules' classes, of the functions that it calls and of the global
values that these name, and the files that all of that stands in. Libraries count by their version and by the file that
a class stands in. What is neither Python code nor a value, such as a session of another runtime, is opaque.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import sys
import sysconfig
import types
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..base.code import code_hash
from ..base.files import file_digest
from ..base.forks import ThreadLock
from .opaque import Opaque
from .store import digest

DEEPEST = 20_000  # calls of this module in each other, several for a value inside of another
COLLECTIONS = (dict, OrderedDict, types.MappingProxyType, list, tuple, set, frozenset, torch.Size)
WHOLE = {"torch", "torchvision", "torchaudio", "triton", "numpy", "scipy", "PIL"}  # known by their versions
LIBRARY_FOLDERS = ("stdlib", "platstdlib", "purelib", "platlib")
PLAIN = (type(None), bool, int, float, complex, str, bytes)
TORCH_VALUES = (torch.dtype, torch.device, torch.layout, torch.memory_format)
CLASS_DETAILS = {  # of a class's own making, or known otherwise
    *("__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__annotate_func__", "_abc_impl"),
    *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "__parameters__", "__orig_bases__"),
    *("__annotations_cache__", "__annotate__", "__match_args__"),
    "__slotnames__",  # there once an object of the class has been reduced, such as by this module
}
HOOKS = "_hooks"  # in the names of a module's attributes whose keys are numbers that differ from run to run


@dataclasses.dataclass(frozen=True)
class Identity:
    """key: SHA-256, in hexadecimal, of all that a module computes with. complete: whether nothing of it is opaque."""

    key: str
    complete: bool


def identity_of(module: nn.Module) -> Identity:
    """What the module computes with, now. It changes with everything that may change a result, and with more."""
    walk = _Walk()
    with _deep_calls:
        walk.add(module)
    walk.text(f"matrix products {torch.get_float32_matmul_precision()}")
    return Identity(walk.total.hexdigest(), walk.complete)


class _DeepCalls:
    """Raises the interpreter's limit of recursion while any thread is inside; the last one to leave restores it."""

    def __init__(self) -> None:
        self._lock = ThreadLock()
        self._inside = 0
        self._limit: int | None = None  # the interpreter's own, while another is in force

    def __enter__(self) -> None:
        with self._lock:
            if self._limit is None:
                self._limit = sys.getrecursionlimit()
            self._inside += 1
            sys.setrecursionlimit(max(self._limit, DEEPEST))

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            limit = self._limit
            if self._inside == 0 and limit is not None:
                sys.setrecursionlimit(limit)
                self._limit = None


_deep_calls = _DeepCalls()


class _Walk:
    """A hash in the making. Values that were met before, by identity, are numbered: modules may be circles."""

    def __init__(self) -> None:
        self.total = hashlib.sha256()
        self.complete = True
        self.met: dict[int, int] = {}
        self.kept: list[object] = []  # or another object might get the id of one that is gone

    def text(self, text: str) -> None:
        encoded = text.encode("utf-8", "surrogatepass")
        self.total.update(f"{len(encoded)}:".encode() + encoded)

    def add(self, value: Any) -> None:
        if _is_simple(value):  # whether two are the same object may depend on where their code was read from
            self.text(f"{type(value).__name__} {value!r}")
            return
        if id(value) in self.met:
            self.text(f"again {self.met[id(value)]}")
            return
        self.met[id(value)] = len(self.met)
        self.kept.append(value)
        self._new(value)

    def _new(self, value: Any) -> None:
        """A value that has not been met: by what it is."""
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, TORCH_VALUES):
            self.text(str(value))
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self.text(f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}")
        elif isinstance(value, np.generic):
            self.text(f"{value.dtype} {value!r}")
        elif isinstance(value, types.ModuleType):
            self._module(value.__name__)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, (types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)):
            self._function(value)
        elif isinstance(value, types.CodeType):
            self._code(value)
        elif isinstance(value, types.MethodType):
            self._all("method", (value.__self__, value.__func__))
        elif isinstance(value, (staticmethod, classmethod)):
            self._all(type(value).__name__, (value.__func__,))
        elif isinstance(value, property):
            self._all("property", (value.fget, value.fset))
        elif isinstance(value, enum.Enum):
            self._all("enum", (type(value), value.name, value.value))
        elif isinstance(value, nn.Module):
            self._network(value)
        elif type(value) not in COLLECTIONS:
            self._object(value)
        elif isinstance(value, Mapping):
            self._pairs(type(value).__qualname__, value)
        elif isinstance(value, (list, tuple)):
            self._all(type(value).__qualname__, value)
        else:
            self._all(type(value).__qualname__, sorted(_alone(each) for each in value))

    def _all(self, what: str, values: Iterable[Any]) -> None:
        found = list(values)
        self.text(f"{what} of {len(found)}")
        for each in found:
            self.add(each)

    def _pairs(self, what: str, values: Mapping[Any, Any]) -> None:
        self.text(f"{what} of {len(values)}")
        for name, each in values.items():
            self.add(name)
            self.add(each)

    def _tensor(self, tensor: Tensor) -> None:
        self.text(f"{type(tensor).__qualname__} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}")
        try:
            plain = tensor.detach()
            if plain.is_quantized:
                self.text(repr(plain.qscheme()))
                plain = plain.dequantize()
            self.text(digest(plain.resolve_conj().resolve_neg() if plain.is_complex() else plain))
        except (RuntimeError, NotImplementedError, TypeError):  # sparse, nested, or of another library
            self._opaque()

    def _network(self, module: nn.Module) -> None:
        """A module: its class, and all that lies in it; in the words of others what was compiled or traced."""
        if isinstance(module, torch.jit.ScriptModule):
            self._script(module)
            return
        original = getattr(module, "_orig_mod", None)
        if isinstance(original, nn.Module):  # of torch.compile
            self._all("compiled", (original,))
            return
        self._class(type(module))
        code = getattr(module, "code", None)  # of torch.fx
        if isinstance(module, torch.fx.GraphModule):
            self.text(str(code))
        for name, value in vars(module).items():
            self.text(name)
            if isinstance(value, Mapping) and HOOKS in name:
                self._all("hooks", value.values())
            elif name == "_compiled_call_impl":
                self.text(str(value is None))
            elif isinstance(module, Opaque) and name in module.without_effect:
                continue
            elif not (isinstance(module, torch.fx.GraphModule) and name in ("_graph", "_code", "graph")):
                self.add(value)

    def _script(self, module: torch.jit.ScriptModule) -> None:
        """What TorchScript has of a module; attributes that are neither tensors nor in its code may be missing."""
        self.complete = False
        for name, part in module.named_modules():
            self.text(f"script {name} {getattr(part, 'code', '')}")
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            self.text(name)
            self._tensor(tensor)

    def _class(self, kind: type) -> bool:
        """A class; whether the library that it is of says everything."""
        self.text(f"class {kind.__module__}.{kind.__qualname__}")
        if self._module(kind.__module__):
            return True
        for base in kind.__bases__:
            self.add(base)
        for name, value in sorted(vars(kind).items()):
            if name not in CLASS_DETAILS:
                self.text(name)
                self.add(value)
        return False

    def _function(self, function: Any) -> None:
        self.text(f"function {function.__module__}.{function.__qualname__}")
        if self._module(function.__module__ or "builtins") or not isinstance(function, types.FunctionType):
            return
        self._all("defaults", (function.__defaults__, function.__kwdefaults__))
        self._all("closure", (_content(cell) for cell in function.__closure__ or ()))
        if (wrapped := getattr(function, "__wrapped__", None)) is not None:
            self.add(wrapped)
        self.add(function.__code__)
        for name in _names(function.__code__):
            if name in function.__globals__:
                self.text(name)
                self.add(function.__globals__[name])

    def _code(self, code: types.CodeType) -> None:
        self.text(f"code {code.co_code.hex()} {code.co_names} {code.co_varnames} {code.co_freevars}")
        self._all("constants", code.co_consts)

    def _module(self, name: str) -> bool:
        """The file of a Python module, with all of its own package that it imports; whether that says everything.

        It does of a library, and of pxfast; of others not, whose global values may be of another run's.
        """
        self.text(f"module {name}")
        code, everything = _module_code(name)
        self.text(code)
        return everything

    def _object(self, value: Any) -> None:
        """Any other object: its class and its state, as pickling has it, and what it wraps."""
        known = self._class(type(value))
        if isinstance(wrapped := getattr(value, "__wrapped__", None), types.FunctionType):
            self.add(wrapped)
        try:
            reduced = value.__reduce_ex__(4)
            parts = [] if isinstance(reduced, str) else [*reduced[:3], *map(_listed, reduced[3:5])]
        except Exception:  # locks, generators, sessions ...: whatever their authors raise
            self._opaque()
            return
        if parts:
            self._all("state", parts)
        else:
            self.text(reduced)  # the name of a global
            self.complete = self.complete and (known or wrapped is not None)

    def _opaque(self) -> None:
        self.text("opaque")
        self.complete = False


def _is_simple(value: object) -> bool:
    """Whether a value is text, a number or nothing, or a tuple of such, whose text says everything."""
    return type(value) in PLAIN or (type(value) is tuple and all(_is_simple(each) for each in value))


def _listed(items: Iterable[Any] | None) -> list[Any] | None:
    return None if items is None else list(items)


def _alone(value: object) -> str:
    walk = _Walk()
    walk.add(value)
    return walk.total.hexdigest()


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _names(code: types.CodeType) -> list[str]:
    """The names that code, and the functions inside it, look up."""
    found = set(code.co_names)
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            found |= set(_names(each))
    return sorted(found)


@functools.cache
def _folders() -> tuple[Path, ...]:
    """Where libraries lie."""
    return tuple({Path(sysconfig.get_path(name)).resolve() for name in LIBRARY_FOLDERS})


def _module_code(name: str) -> tuple[str, bool]:
    """A Python module's version or code as text, and whether that says everything of it."""
    module = sys.modules.get(name)
    top = name.partition(".")[0]
    if top in sys.builtin_module_names:
        return sys.version, True
    if top == "pxfast":
        return code_hash(name), True
    file = getattr(module, "__file__", None)
    if file is None:
        return "", False
    path = Path(file).resolve()
    if any(path.is_relative_to(folder) for folder in _folders()):
        version = sys.version if top in sys.stdlib_module_names else getattr(sys.modules.get(top), "__version__", "")
        return f"{version} {_library_digest(path)}", top in sys.stdlib_module_names or top in WHOLE
    try:
        return code_hash(name), False
    except (ValueError, OSError, SyntaxError, ImportError, AttributeError):  # a script, which no name finds
        return file_digest(path) if path.is_file() else "", False


@functools.cache
def _library_digest(path: Path) -> str:
    return file_digest(path) if path.is_file() else ""
