"""Tensors in and out of safetensors files. Nothing is ever unpickled.

A file's header says what is in it before anything of it is read: what it says is checked first, and compared with what
the file should hold, so that a file can ask for no more memory than it has bytes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..base.checks import notes_json
from ..base.files import file_state, whole_file
from ..base.reading import parse_json, regular_file
from ..base.records import Record, record, shown

LARGEST_HEADER = 8 << 20  # bytes; a tensor takes about a hundred
MOST_VALUES = 1 << 48  # of a tensor whose shape makes sense
FLOATS = ("float64", "float32", "float16", "bfloat16")
TYPES = {  # as headers call them
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

MOST_READS = 10  # of a file that is replaced while it is read

Network = TypeVar("Network", bound=nn.Module)
Read = TypeVar("Read")


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor as a file's header has it. dtype: as torch calls it; what torch has not, as the header does."""

    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: its metadata, and its tensors by name."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Stored]


def read_header(path: str | os.PathLike[str], *formats: str) -> Header:
    """The header of one of pxfast's files, of one of these formats, without its tensors.

    FileNotFoundError; ValueError names the file and what is wrong with it: it is no regular file, truncated, no
    safetensors file, of another format, or its header names a tensor twice, or is larger than 8 MiB.
    """
    path = regular_file(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(path.stat().st_size - 8, LARGEST_HEADER):
            raise _damaged(path, "it is shorter than its header, or that is too large")
        data = file.read(length)
    try:
        values = parse_header(data.decode("utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from None
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata are not texts by name")
    found = metadata.get("format", "no format")
    if found not in formats:
        raise ValueError(f"{path} is a safetensors file of another kind: expected {formats[0]!r}, found {shown(found)}")
    return Header(path, metadata, {name: _stored(value, name, path) for name, value in values.items()})


def parse_header(text: str) -> dict[str, Any]:
    """A header's tables by name. ValueError for what is no JSON, no table, too deep, or names something twice."""
    values = parse_json(text, "its header")
    if not isinstance(values, dict):
        raise ValueError(f"its header is {shown(values)}")
    return values


def _stored(value: Any, name: str, path: Path) -> Stored:
    dtype, shape = (value.get("dtype"), value.get("shape")) if isinstance(value, dict) else (None, None)
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise _damaged(path, f"its header has no type and shape of {shown(name)}")
    values = 1
    for side in shape:
        if not isinstance(side, int) or isinstance(side, bool) or side < 0:
            raise _damaged(path, f"{shown(name)} has an impossible shape")
        values *= max(1, side)
        if values > MOST_VALUES:
            raise _damaged(path, f"{shown(name)} has an impossible shape")
    return Stored(TYPES.get(dtype, dtype[:20]), tuple(shape))


def _damaged(path: Path, problem: object) -> ValueError:
    return ValueError(f"{path} is truncated or not a safetensors file ({str(problem)[:200]})")


def read_tensors(header: Header) -> dict[str, Tensor]:
    """The tensors of the file whose header this is. ValueError names the file when they are not where it says."""
    try:
        with safe_open(header.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError, KeyError, RuntimeError) as error:  # a type that torch has not, too
        raise _damaged(header.path, error) from None


def read_safetensors(path: str | os.PathLike[str], *formats: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of one of pxfast's files, of one of these formats: of one file, though a training may
    replace it meanwhile.

    Raises what :func:`read_header` and :func:`read_tensors` do.
    """

    def read() -> tuple[dict[str, Tensor], dict[str, str]]:
        header = read_header(path, *formats)
        return read_tensors(header), header.metadata

    return read_unchanged(Path(path), read)


def read_unchanged(path: Path, read: Callable[[], Read]) -> Read:
    """What ``read`` makes of a file that is the same before and behind it; if it was replaced, it is read again.

    So are what ``read`` raises of such a file, and other files that belong to it and were removed with it.
    """
    for _ in range(MOST_READS - 1):
        before = file_state(path)
        try:
            found = read()
        except (OSError, ValueError):
            if file_state(path) == before:
                raise
            continue
        if file_state(path) == before:
            return found
    return read()


def add_notes(path: str | os.PathLike[str], notes: dict[str, Any], *formats: str) -> None:
    """Add notes to one of pxfast's files, of one of these formats; its tensors keep their bits and their types.

    Raises what :func:`read_safetensors` does, and TypeError for notes that JSON can't hold.
    """
    tensors, metadata = read_safetensors(path, *formats)
    told = notes_json({**read_notes(metadata, path), **notes})
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={**metadata, "notes": told})


def metadata_json(
    metadata: Mapping[str, str], key: str, path: str | os.PathLike[str], default: str | None = None
) -> Any:
    """What a file's metadata say, in JSON, under ``key``. ValueError names the file where that is missing or no JSON.

    default: JSON, for files that lack the key.
    """
    text = metadata.get(key, default)
    if text is None:
        raise ValueError(f"{os.fspath(path)} lacks {key!r} in its metadata")
    return parse_json(text, f"{os.fspath(path)}: {key!r} in its metadata")


def metadata_table(
    metadata: Mapping[str, str], key: str, path: str | os.PathLike[str], default: str | None = None
) -> dict[str, Any]:
    """As :func:`metadata_json`, of a table. ValueError for anything else, too."""
    table = metadata_json(metadata, key, path, default)
    if not isinstance(table, dict):
        raise ValueError(f"{os.fspath(path)}: {key!r} in its metadata must be a table, got {shown(table)}")
    return table


def metadata_record(
    kind: type[Record], metadata: Mapping[str, str], path: str | os.PathLike[str], what: str, key: str = "config"
) -> Record:
    """The dataclass ``kind`` that a file's metadata say under ``key``. ValueError names the file and what is wrong.

    what: how messages call it, such as 'model configuration'.
    """
    return record(kind, metadata_json(metadata, key, path), f"{os.fspath(path)}: bad {what}")


def read_notes(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The notes of a file; none where it has none. ValueError names the file when they are no table."""
    return metadata_table(metadata, "notes", path, "{}")


class _Undrawn(TorchFunctionMode):
    """Tensors keep their shapes and are not filled: a file's values come into them, and whoever draws numbers beside
    gets the same ones. On the meta device torch would import its compiler for filling them, which takes a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in _FILLING:
            return args[0] if args else given["tensor"]  # the functions of nn.init pass it by name
        return (torch.empty if func is torch.randn else func)(*args, **given)


class _Shapeless(_Undrawn):
    """On the meta device, where nothing is to be computed."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return args[0] if func is Tensor.mul else super().__torch_function__(func, types, args, kwargs)


_FILLING = (  # how networks draw their first weights
    Tensor.normal_,
    Tensor.uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    nn.init.kaiming_normal_,
    nn.init.kaiming_uniform_,
)


def load_network(
    header: Header, layers: int, build: Callable[[], Network], targets: Callable[[Network], dict[str, Tensor]]
) -> Network:
    """A network with the file's tensors, on the CPU, its weights not yet anywhere but in ``targets``.

    layers: how many the file's configuration asks for at least, each with a tensor of its own. build: gives the
    network of the file's configuration; it is called on the meta device first, where it takes no memory, and in
    earnest only when the names, shapes and types of the header are those of ``targets``, the network's tensors by the
    names that files give them. ValueError, naming the file, when they are not.
    """
    if len(header.tensors) < layers:
        raise ValueError(
            f"{header.path} does not fit its configuration: missing tensors, it has {len(header.tensors)} of them for "
            f"more than {layers} layers"
        )
    with torch.device("meta"), _Shapeless():
        check_fit(header.tensors, targets(build()), header.path)
    with _Undrawn():
        network = build()
    copy_tensors(targets(network), read_tensors(header), header.path)
    return network


def check_fit(found: Mapping[str, Stored], targets: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """ValueError, naming the file, unless names and shapes are those of ``targets``, and the types floating."""
    if found.keys() != targets.keys():
        odd = sorted(found.keys() ^ targets.keys())[:3]
        raise ValueError(f"{path} does not fit its configuration: missing or unexpected tensors, such as {shown(odd)}")
    for name, target in targets.items():
        if found[name].shape != target.shape:
            raise ValueError(f"{path}: {name} should have shape {tuple(target.shape)}, found {found[name].shape}")
        if found[name].dtype not in FLOATS:
            raise ValueError(f"{path}: {name} should be one of {', '.join(FLOATS)}, found {found[name].dtype}")


@torch.no_grad()
def copy_tensors(targets: dict[str, Tensor], tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Copy a file's tensors into a network's. ValueError, naming ``path``, when they do not fit or are not finite."""
    check_fit({name: Stored(_name(value.dtype), tuple(value.shape)) for name, value in tensors.items()}, targets, path)
    for name, target in targets.items():
        if not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{path}: {name} has values that are not finite")
        target.copy_(tensors[name])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as files other than a PixelCNN's hold it: in bf16, but fp32 where there is one dimension.

    What is not floating point, such as BatchNorm's counters of batches seen, stays out.
    """
    tensors = {}
    for name, value in floating_state(module).items():
        dtype = torch.bfloat16 if value.dim() > 1 else torch.float32
        tensors[name] = value.detach().to("cpu", dtype).contiguous()
    return tensors


def floating_state(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module's state that are floating point, by name."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}


def fill(module: nn.Module, tensors: dict[str, Tensor], origin: str | os.PathLike[str]) -> None:
    """Copy ``stored_tensors`` into a module. ValueError, naming ``origin``, when they do not fit."""
    copy_tensors(floating_state(module), tensors, origin)
