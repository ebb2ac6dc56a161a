"""Dataclasses from what JSON and TOML files say: every field is there, known, and of its declared type."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from typing import Any, TypeVar

Record = TypeVar("Record")

NAMES: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
SHOWN, MESSAGE = 60, 400  # characters of a wrong value, and of what a dataclass says of one


def record(kind: type[Record], values: object, where: str) -> Record:
    """The dataclass ``kind`` from a table of its fields; lists become tuples where it declares these.

    where: what messages begin with, such as a file's name. Fields may be declared as bool, int, float (which takes
    integers), str, Any, tuples, lists, dicts with names as keys, other such dataclasses, and each of these or None.
    ValueError for another type, for fields that are missing or unknown, and for what the dataclass itself refuses.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a table of fields, got {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    if unknown := values.keys() - fields.keys():
        odd = ", ".join(str(name)[:SHOWN] for name in sorted(map(str, unknown))[:3])
        raise ValueError(f"{where}: unknown {odd}; known: {', '.join(fields)}")
    needed = (name for name, field in fields.items() if _is_needed(field))
    if missing := [name for name in needed if name not in values]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    hints: dict[str, Any] = _hints(typing.cast("Any", kind))
    made = {name: _typed(hints[name], value, where, name) for name, value in values.items()}
    try:
        return kind(**made)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{where}: {str(error)[:MESSAGE]}") from None


def shown(value: object) -> str:
    """A value as messages show it: short."""
    if isinstance(value, (dict, list, tuple)) and len(value) > 3:  # whose text may be long
        return f"a {'table' if isinstance(value, dict) else 'list'} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 4 * SHOWN:  # Python refuses to write very large ones
        return f"an integer of {value.bit_length()} bits"
    text = repr(value) if not isinstance(value, (dict, list, tuple)) else _shallow(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _shallow(value: dict[Any, Any] | list[Any] | tuple[Any, ...]) -> str:
    inside = list(value.items()) if isinstance(value, dict) else [(None, each) for each in value]
    parts = ["..." if isinstance(each, (dict, list, tuple)) else shown(each) for _, each in inside]
    if isinstance(value, dict):
        named = (f"{shown(key)}: {part}" for (key, _), part in zip(inside, parts, strict=True))
        return f"{{{', '.join(named)}}}"
    return f"[{', '.join(parts)}]"


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(hint: Any, value: Any, where: str, name: str) -> Any:
    """``value`` as the declared type ``hint`` has it."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wrong = ValueError(f"{where}: {name} must be {_words(hint)}, got {shown(value)}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return _typed(inner, value, where, name)
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise wrong
        if origin is list or arguments[-1] is ...:
            inner = [arguments[0]] * len(value)
        elif len(arguments) != len(value):
            raise wrong
        else:
            inner = list(arguments)
        made = [
            _typed(kind, each, where, f"{name}[{i}]") for i, (kind, each) in enumerate(zip(inner, value, strict=True))
        ]
        return made if origin is list else tuple(made)
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise wrong
        return {key: _typed(arguments[1], each, where, f"{name}.{key[:SHOWN]}") for key, each in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast("type[Any]", hint)):
            return value
        return record(typing.cast("type[Any]", hint), value, f"{where}: {name}")
    expected = (int, float) if hint is float else (hint,)
    if not isinstance(value, expected) or (isinstance(value, bool) and hint is not bool):
        raise wrong
    if hint is float and isinstance(value, int) and abs(value) > sys.float_info.max:
        raise wrong
    return value


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("nothing" if argument is type(None) else _words(argument) for argument in arguments)
    if origin is list or (origin is tuple and arguments[-1] is ...):
        return "a list"
    if origin is tuple:
        return f"a list of {len(arguments)}"
    return "a table" if origin is dict or dataclasses.is_dataclass(hint) else NAMES.get(hint, str(hint))
