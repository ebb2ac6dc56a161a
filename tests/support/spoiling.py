"""Ways to spoil a file: anywhere in its bytes, or inside of what it says, with lengths and checksums kept right."""

from __future__ import annotations

import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Spoil = Callable[[random.Random, bytes], bytes]

NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 1.5, -0.5, 10**6, 10**9, 1 << 62, 1 << 70, 1e300, float("nan"), float("inf")),
    *("", "a", "../../x", "/etc/passwd", "\0", "x" * 70_000, "\ud800", "nan", "1"),
    *([], [0], [1, 2, 3], [[]], [10**9] * 3, {}, {"a": 1}, {"format": "x"}),
)
TOML_VALUES = ("true", "1.5", "-1", "[]", "{}", '"../x"', '"/tmp/x"', '""', "nan", "inf", "10000000000", "1979-05-27")
TOML_VALUES += ("[[[]]]", '["a", 1]', "[" * 5000, '"a" "b"', "0x_", '"\\ud800"', ".".join("a" * 9000) + " = 1")


def anywhere(draw: random.Random, data: bytes) -> bytes:
    """Cut it, overwrite, insert, remove or repeat some bytes, or put a large number somewhere."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(min(len(data), draw.choice((64, 512, 1 << 30))) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            del data[place:]
        elif kind == 1 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            size = draw.choice((1, 2, 4, 8))
            number = draw.choice(NUMBERS) % (1 << (8 * size))
            data[place : place + size] = number.to_bytes(size, draw.choice(("little", "big")))
        elif kind == 3:
            data[place:place] = draw.randbytes(draw.choice((1, 8, 100)))
        elif kind == 4:
            del data[place : place + draw.choice((1, 8, 100))]
        else:
            data[place:place] = data[place : place + draw.choice((8, 100))]
    return bytes(data)


def inside(draw: random.Random, value: Any, depth: int = 0) -> Any:
    """JSON with one value changed, removed, renamed or added, somewhere in it."""
    if isinstance(value, dict) and value and (depth == 0 or draw.random() < 0.7):
        key = draw.choice(list(value))
        kind = draw.randrange(8)
        if kind == 0:
            return {name: each for name, each in value.items() if name != key}
        if kind == 1:
            return {draw.choice(("x", "", "0", key.upper())) if name == key else name: value[name] for name in value}
        if kind == 2:
            return {**value, draw.choice(("x", "format", "name")): draw.choice(VALUES)}
        return {**value, key: inside(draw, value[key], depth + 1)}
    if isinstance(value, list) and value and draw.random() < 0.7:
        place = draw.randrange(len(value))
        kind = draw.randrange(4)
        if kind == 0:
            return value[:place] + value[place + 1 :]
        if kind == 1:
            return [*value, *value]
        return [*value[:place], inside(draw, value[place], depth + 1), *value[place + 1 :]]
    if isinstance(value, str) and value[:1] in ("{", "[") and draw.random() < 0.9:
        return as_text(draw, inside(draw, json.loads(value), depth + 1))  # JSON in a text, as metadata have it
    return draw.choice(VALUES)


def as_text(draw: random.Random, value: Any) -> str:
    """JSON as text, at times one that names something twice, or that goes very deep."""
    text = json.dumps(value)
    kind = draw.randrange(12)
    if kind == 0 and text.startswith("{") and len(text) > 2:
        return f"{text[:-1]}, {text[1:]}"
    if kind == 1:
        return text.replace(draw.choice(("1", "null", '"')), "[" * 100_000 + "]" * 100_000, 1)
    if kind == 2:
        return text.replace("1", "9" * draw.choice((400, 6000)), 1)
    return text


def json_text(draw: random.Random, data: bytes) -> bytes:
    return as_text(draw, inside(draw, json.loads(data))).encode("utf-8", "surrogatepass")


def safetensors_header(draw: random.Random, data: bytes) -> bytes:
    """A header or its metadata changed, with its length put right."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if draw.random() < 0.6:
        header["__metadata__"] = inside(draw, header["__metadata__"])
    else:
        header = inside(draw, header)
    text = as_text(draw, header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def toml_text(draw: random.Random, data: bytes) -> bytes:
    """One field of a table with another value, or another field, or one removed."""
    lines = data.decode().splitlines()
    place = draw.choice([i for i, line in enumerate(lines) if re.match(r"\w+ = ", line)])
    key = lines[place].partition(" = ")[0]
    kind = draw.randrange(6)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(place, lines[place])
    elif kind == 2:
        lines.insert(place, f"{draw.choice(('x', 'seed', 'name', 'options'))} = {draw.choice(TOML_VALUES)}")
    else:
        lines[place] = f"{key} = {draw.choice(TOML_VALUES)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def zip_member(draw: random.Random, data: bytes) -> bytes:
    """One member of a zip spoiled, left out, repeated or compressed; the checksums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    place = draw.choice([i for i, (name, _) in enumerate(members) if name.endswith((".pkl", "data/0", "byteorder"))])
    name, content = members[place]
    kind = draw.randrange(8)
    if kind == 0:
        del members[place]
    elif kind == 1:
        members.append((f"x/{name}", content))
    elif kind == 2:
        members[place] = (name, content * draw.choice((2, 50)))
    else:
        members[place] = (name, anywhere(draw, content))
    file = io.BytesIO()
    compression = zipfile.ZIP_DEFLATED if draw.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return file.getvalue()


def png_chunk(draw: random.Random, data: bytes) -> bytes:
    """One chunk of a PNG spoiled, with its checksum put right."""
    chunks, place = [], 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        chunks.append([data[place + 4 : place + 8], data[place + 8 : place + 8 + length]])
        place += length + 12
    chosen = draw.choice(chunks)
    if draw.random() < 0.2:
        chosen[0] = draw.choice((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL"))
    chosen[1] = anywhere(draw, chosen[1])
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return data[:8] + b"".join(parts)
