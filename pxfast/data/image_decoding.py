"""One image file as numbers: what a viewer shows, where eight bits a channel can hold it, and else a refusal."""

from __future__ import annotations

import io
import os
import typing
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ..base.reading import BoundedFile
from .images import Array

IMAGE_SUFFIXES = (".png", ".bmp", ".gif", ".jpg", ".jpeg", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
FORMATS = ("PNG", "BMP", "GIF", "JPEG", "PPM", "TIFF", "WEBP")  # Pillow knows more, some of which start programs
MOST_PIXELS = 1 << 25  # 5792 x 5792: decoding more would take gigabytes
BITS_PER_SAMPLE, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT = 258, 322, 323, 339  # TIFF's tags
SIGNED = 2  # of a sample's formats
MOST_CHUNKS = 64  # of a WebP file before its first frame, of which there are three by its definition
UNCOVERED = "has pixels that its frame leaves out, which are transparent, expected opaque grey (L) or colour (RGB)"


def read_image(path: str | os.PathLike[str]) -> Array:
    """An image file as uint8 (C, H, W): grey as one channel, colour as three.

    One rule holds for every format: the result is what a viewer shows, without loss, and a file that can't be had so is
    refused. An orientation (EXIF, XMP or TIFF) is applied, a palette is looked up, one bit becomes 0 or 255.
    Transparency in any form, more than 8 bits a channel, several frames, and colours other than grey and RGB, such as
    CMYK, are refused. Colour profiles and gamma are not applied: the numbers are the file's own.

    Raises FileNotFoundError; ValueError names the file when it can't be read, has more than 2^25 pixels, is no regular
    file, or is refused by the rule.
    """
    with BoundedFile(path) as file:
        return _planes(file, os.fspath(path))


def decode_image(content: bytes, name: str = "the image", most_pixels: int = MOST_PIXELS) -> Array:
    """The bytes of an image file as :func:`read_image` has them. ValueError, which calls them ``name``, as there.

    most_pixels: that the image may have; one that has more is refused before it is decoded.
    """
    return _planes(io.BytesIO(content), name, most_pixels)


def _planes(file: BinaryIO, name: str | bytes, most_pixels: int = MOST_PIXELS) -> Array:
    pixels, refusal = _read(file, most_pixels)
    if pixels is None:
        raise ValueError(f"{os.fsdecode(name)} {refusal}")
    return _channels_first(pixels)


def pillow_array(image: Image.Image, what: str) -> Array:
    """One of Pillow's images as uint8 (C, H, W), by the rule of :func:`read_image`.

    16 bits of colour that Pillow has made 8 of already can't be seen. ValueError, which begins with ``what``, for an
    image that the rule refuses.
    """
    pixels, refusal = _pixels(image)
    if pixels is None:
        raise ValueError(f"{what} {refusal}")
    return _channels_first(pixels)


def array_pillow(image: Array) -> Image.Image:
    """A uint8 array (C, H, W), of one channel or three, as one of Pillow's images: grey (L) or colour (RGB)."""
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _channels_first(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1))


def _read(file: BinaryIO, most_pixels: int) -> tuple[Array | None, str]:
    """As :func:`_decoded`, which may raise anything."""
    try:
        return _decoded(file, most_pixels)
    except UnidentifiedImageError:
        return None, f"can't be read as an image: it is none of {', '.join(FORMATS)}"
    except Exception as error:  # Pillow's plug-ins raise what their parsing runs into: IndexError, struct.error, ...
        return None, f"can't be read as an image: {str(error) or type(error).__name__}"


def _decoded(file: BinaryIO, most_pixels: int) -> tuple[Array | None, str]:
    """The pixels (H, W) or (H, W, 3) uint8; or None and why the file is refused."""
    if (pixels := _webp_pixels(file)) > most_pixels:
        return None, f"has {pixels} pixels, expected {most_pixels} at most"
    if not _webp_is_covered(file):
        return None, UNCOVERED
    with Image.open(file, formats=FORMATS) as opened:
        image: Image.Image = opened
        if image.width * image.height > most_pixels:
            return None, f"has {image.width} x {image.height} pixels, expected {most_pixels} at most"
        tags = getattr(image, "tag_v2", {})
        if tags.get(TILE_WIDTH, 0) * tags.get(TILE_LENGTH, 0) > MOST_PIXELS:  # a small image may lie in one large tile
            return None, f"has tiles of more than {MOST_PIXELS} pixels"
        return _pixels(image)


def _pixels(image: Image.Image) -> tuple[Array | None, str]:
    """The pixels (H, W) or (H, W, 3) uint8 of one of Pillow's images; or None and why it is refused."""
    mode = image.mode
    if getattr(image, "is_animated", False):
        return None, "has several frames, expected one: save the one that is meant as an image of its own"
    if getattr(image, "tile", None):
        file = typing.cast("ImageFile.ImageFile", image)
        if (bits := _bits(file)) > 8:
            return None, f"has {bits} bits a channel, expected 8"
        if file.format == "GIF" and file.tile[0][1] != (0, 0, *file.size):
            return None, UNCOVERED
    if SIGNED in _numbers(getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, 1)):
        return None, "has signed numbers, expected 8-bit grey (L) or colour (RGB)"
    image.load()  # what stands behind the pixels in the file is known only now
    if _is_transparent(image):
        return None, f"has pixels of mode {mode} with transparency, expected opaque grey (L) or colour (RGB)"
    if mode == "1":
        image = image.convert("L")
    elif mode == "P":
        image = image.convert("RGB")
    if image.mode not in ("L", "RGB"):
        return None, f"has pixels of mode {mode}, expected 8-bit grey (L) or colour (RGB)"
    return np.asarray(ImageOps.exif_transpose(image)), ""


def _webp_pixels(file: BinaryIO) -> int:
    """Pixels that a WebP file says it has, for which its decoder makes room when the file is opened; 0 of others."""
    head = file.read(30)
    file.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP" or len(head) < 30:
        return 0
    if head[12:16] == b"VP8X":  # sizes are less by one, in 24 bits
        return (1 + int.from_bytes(head[24:27], "little")) * (1 + int.from_bytes(head[27:30], "little"))
    if head[12:16] == b"VP8L":  # in 14 bits each
        sides = int.from_bytes(head[21:25], "little")
        return (1 + (sides & 0x3FFF)) * (1 + (sides >> 14 & 0x3FFF))
    return (int.from_bytes(head[26:28], "little") & 0x3FFF) * (int.from_bytes(head[28:30], "little") & 0x3FFF)


def _webp_is_covered(file: BinaryIO) -> bool:
    """Whether the first frame of an animated WebP covers it, of which Pillow makes the rest black; True of others."""
    head = file.read(30)
    covered = True
    if head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X":
        file.seek(12)
        for _ in range(MOST_CHUNKS):
            kind, size = file.read(4), int.from_bytes(file.read(4), "little")
            if kind == b"ANMF":  # where it begins, in steps of two pixels, and its sides, less by one
                covered = file.read(12) == bytes(6) + head[24:30]
            if kind == b"ANMF" or not kind:
                break
            file.seek(size + size % 2, os.SEEK_CUR)
    file.seek(0)
    return covered


def _is_transparent(image: Image.Image) -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette is not None else ""
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info or palette.endswith("A")


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits of a channel in the file, where Pillow gives 8 of what may be more."""
    if image.format == "PNG":
        return 16 if ";16" in str(image.tile[0][3]) else 8
    if image.format == "TIFF":
        return max(_numbers(getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE, 1)))
    if image.format == "PPM" and image.tile[0][0].startswith("ppm") and image.mode != "1":
        _, largest = typing.cast("tuple[str, int]", image.tile[0][3])
        return largest.bit_length()
    if image.format == "PPM" and image.mode == "I":
        return 16
    return 8


def _numbers(tag: Any) -> tuple[int, ...]:
    """The numbers of a TIFF's tag, of which Pillow gives one or several."""
    return tuple(map(int, tag)) if isinstance(tag, tuple) else (int(tag),)
