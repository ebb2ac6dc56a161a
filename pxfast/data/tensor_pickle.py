"""What the file of one tensor says of it, without unpickling anything.

torch.save writes a zip of uncompressed members, one of which is a pickle that names the tensor's storage, shape and
strides; the others hold the bytes. Before torch 1.6 it wrote pickles, and the bytes behind them. A pickle is a program;
here only the few steps that describe a plain tensor are understood, and nothing that it names is imported or called.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ..base.reading import BoundedFile

LARGEST_PICKLE = 1 << 16  # bytes; a plain tensor's takes about two hundred
BLOCK = 1 << 20  # bytes read at once
LEGACY = (0x1950A86A20F9469CFC6C, 1001)  # how files older than torch 1.6 begin
DTYPES = {
    "ByteStorage": torch.uint8,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
}
REBUILD = "torch._utils"
FOUND = {  # what other tensors are rebuilt by
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "_rebuild_qtensor": "a quantised tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_tensor_v3": "a tensor of another type",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device's",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device's",
}
NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "BINFLOAT")
LITERALS = (*NUMBERS, "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


# what reading a pickle's steps and a zip meets; OSError is of places before the file's beginning
DAMAGE: tuple[type[Exception], ...] = (
    *(ValueError, KeyError, IndexError, EOFError, OSError, RuntimeError, NotImplementedError),
    *(struct.error, zlib.error, zipfile.BadZipFile),
)


class Unexpected(Exception):
    """The file holds something else than one plain tensor of images; its text says what."""


@dataclasses.dataclass(frozen=True, eq=False)
class Name:
    """Something that a pickle names: a class or a function of a module."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """What a pickle asks to be called, and with what."""

    function: Any
    arguments: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Outside:
    """What a pickle says of something that lies outside of it: a storage."""

    what: Any


@dataclasses.dataclass(frozen=True)
class Declared:
    """A plain tensor as a pickle has it: in elements of a storage, which has ``elements`` of them, called ``key``."""

    key: str
    dtype: torch.dtype
    elements: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_tensor(path: Path) -> torch.Tensor:
    """The one tensor that a .pt file holds, of uint8 or a floating type, on the CPU.

    Raises FileNotFoundError; ValueError when the file is truncated, no file of torch.save's, no regular file, or has
    less values than the tensor's shape, as an expanded tensor's has; TypeError when it holds something else, such as a
    dictionary, a sparse tensor or integers. All name the file.
    """
    with BoundedFile(path) as file:
        zipped = file.read(4) == b"PK\x03\x04"
        try:
            declared, data, little = _from_zip(file) if zipped else _from_pickles(file)
            return _tensor(declared, data, little)
        except Unexpected as error:
            raise TypeError(f"{path}: expected a tensor of images, found {error}") from None
        except DAMAGE as error:
            raise ValueError(f"{path} is truncated or no file of a plain tensor: {error}") from None


def _from_zip(file: IO[bytes]) -> tuple[Declared, bytearray, bool]:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it has {len(pickles)} members data.pkl, expected one")
        folder = pickles[0].removesuffix("data.pkl")
        declared = declared_tensor(read_pickle(io.BytesIO(_member(archive, pickles[0], LARGEST_PICKLE))))
        size = declared.elements * declared.dtype.itemsize
        data = _member(archive, f"{folder}data/{declared.key}", size)
        if len(data) != size:
            raise ValueError(f"its storage has {len(data)} bytes, and should have {size}")
        order = f"{folder}byteorder"
        little = order not in archive.namelist() or _member(archive, order, 16) == b"little"
    return declared, data, little


def _member(archive: zipfile.ZipFile, name: str, largest: int) -> bytearray:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{name[:100]} is compressed, which torch.save's are not")
    if info.file_size > largest:
        raise ValueError(f"{name[:100]} has {info.file_size} bytes, expected {largest} at most")
    with archive.open(info) as member:
        return _read(member, info.file_size)


def _from_pickles(file: IO[bytes]) -> tuple[Declared, bytearray, bool]:
    file.seek(0)
    head = io.BytesIO(file.read(LARGEST_PICKLE))
    for number in LEGACY:
        if read_pickle(head) != number:
            raise ValueError("it does not begin as torch.save's files do")
    machine = read_pickle(head)
    if not isinstance(machine, dict):
        raise ValueError("it does not say which machine wrote it")
    declared = declared_tensor(read_pickle(head))
    if read_pickle(head) != [declared.key]:
        raise ValueError("it has other storages than its tensor's")
    file.seek(head.tell())
    (elements,) = struct.unpack("<q", file.read(8))
    if elements != declared.elements:
        raise ValueError(f"its storage has {elements} elements, and should have {declared.elements}")
    return declared, _read(file, elements * declared.dtype.itemsize), machine.get("little_endian") is not False


def _read(file: IO[bytes], size: int) -> bytearray:
    """So many bytes; no more memory than the file has is taken. EOFError where it has less."""
    data = bytearray()
    while len(data) < size:
        block = file.read(min(BLOCK, size - len(data)))
        if not block:
            raise EOFError(f"{len(data)} bytes, where {size} should be")
        data += block
    return data


def read_pickle(stream: IO[bytes]) -> Any:
    """What the next pickle in a stream says: numbers, texts, tuples, lists and dictionaries as they are, and
    :class:`Name`, :class:`Call` and :class:`Outside` for all else. ValueError where a plain tensor's pickle has no
    such step.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        start = marks.pop()
        found = stack[start:]
        del stack[start:]
        return found

    step: tuple[pickletools.OpcodeInfo, Any, int | None]
    for step in pickletools.genops(stream):
        name, argument = step[0].name, step[1]
        if name == "STOP":
            return stack.pop()
        if name in ("PROTO", "FRAME"):
            continue
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else above_mark()
            if not isinstance(stack[-1], list):
                raise ValueError("its pickle appends to what is no list")
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else above_mark()
            if not isinstance(stack[-1], dict) or not all(isinstance(key, str) for key in items[::2]):
                raise ValueError("its pickle sets what is no item of a dictionary")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(Name(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not isinstance(module, str) or not isinstance(attribute, str):
                raise ValueError("its pickle names something by what is no text")
            stack.append(Name(module, attribute))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(Call(function, arguments))
        elif name == "BINPERSID":
            stack.append(Outside(stack.pop()))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[argument])
        else:
            raise ValueError(f"its pickle has the step {name}, which a plain tensor's has not")
    raise EOFError("its pickle has no end")


def declared_tensor(value: Any) -> Declared:
    """The plain tensor that a pickle's ``value`` describes. Unexpected, ValueError for anything else."""
    if not isinstance(value, Call):
        raise Unexpected(type(value).__name__ if not isinstance(value, (Name, Outside)) else "a pickled object")
    function, arguments = value.function, value.arguments
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Unexpected("a pickled object")
    if (function.module, function.name) == ("torch._tensor", "_rebuild_from_type_v2"):  # a tensor with attributes
        if isinstance(arguments[1], Name) and (arguments[1].module, arguments[1].name) == ("torch", "Tensor"):
            return declared_tensor(Call(arguments[0], arguments[2]))
        raise Unexpected("a tensor's subclass")
    if function.module != REBUILD or not (function.name in FOUND or function.name.startswith("_rebuild_")):
        if (function.module, function.name) == ("collections", "OrderedDict"):
            raise Unexpected("OrderedDict")
        raise ValueError(f"it names {function.module[:50]}.{function.name[:50]}")
    if function.name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        return declared_tensor(arguments[0])
    if function.name not in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        raise Unexpected(FOUND.get(function.name, "a pickled object"))
    storage, offset, shape, strides = arguments[:4]
    what = storage.what if isinstance(storage, Outside) else None
    if not isinstance(what, tuple) or len(what) < 5 or what[0] != "storage" or not isinstance(what[1], Name):
        raise ValueError("its tensor has no storage")
    if what[1].module not in ("torch", "torch.storage") or what[1].name not in DTYPES:
        raise Unexpected(f"one whose values are in a {what[1].name[:50]}, not uint8 or floating point")
    if any(each is not None for each in what[5:]):
        raise ValueError("its storage is part of another")
    key, elements = what[2], what[4]
    numbers = [elements, offset, *_tuple(shape), *_tuple(strides)]
    if not isinstance(key, str) or len(shape) != len(strides):
        raise ValueError("its tensor's storage or shape is impossible")
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 1 << 48 for n in numbers):
        raise ValueError("its tensor's storage, shape or strides are impossible")
    return Declared(key, DTYPES[what[1].name], elements, offset, shape, strides)


def _tuple(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise ValueError("its tensor has no shape")
    return value


def _tensor(declared: Declared, data: bytearray, little: bool) -> torch.Tensor:
    values, last = 1, declared.offset
    for side, stride in zip(declared.shape, declared.strides, strict=True):
        values *= side
        last += (side - 1) * stride
    if values > declared.elements or (values and last >= declared.elements):
        raise ValueError(
            f"its shape {declared.shape} has {values} values, and the file {declared.elements}: it is the file of an "
            "expanded tensor, or damaged; save x.contiguous()"
        )
    if not values:
        return torch.zeros(declared.shape, dtype=declared.dtype)
    if little != (sys.byteorder == "little"):
        unsigned = np.frombuffer(data, np.dtype(f"=u{declared.dtype.itemsize}"))
        data = bytearray(unsigned.byteswap().tobytes())
    return torch.frombuffer(data, dtype=declared.dtype).as_strided(declared.shape, declared.strides, declared.offset)
