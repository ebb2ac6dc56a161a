"""An image file is read as a viewer shows it, exactly, or refused: the same rule for every format."""

from __future__ import annotations

import io
import os
import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pxfast.data.image_decoding import FORMATS, IMAGE_SUFFIXES, decode_image, read_image
from pxfast.data.image_files import open_collection

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (6, 9), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
LOSSLESS = (".png", ".bmp", ".ppm", ".tif", ".webp")
WITH_ORIENTATION = (".png", ".jpg", ".tif", ".webp")
ORIENTED = {  # how a viewer turns what is stored, by EXIF's numbers; 0 and 9 mean nothing
    0: lambda x: x,
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x),
    9: lambda x: x,
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, depth: int, colour_type: int, *between: bytes, interlaced: bool = False) -> bytes:
    """A PNG of rows of big-endian samples (H, W, channels), with chunks between its header and its data."""
    H, W = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2" if depth == 16 else "u1").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", W, H, depth, colour_type, 0, 0, int(interlaced))
    parts = (chunk(b"IHDR", header), *between, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **({"lossless": True} if path.suffix == ".webp" else {}), **options)
    return path


def test_the_pixels_that_an_image_may_have() -> None:
    file = io.BytesIO()
    Image.new("L", (40, 50)).save(file, "PNG")
    assert decode_image(file.getvalue(), most_pixels=2000).shape == (1, 50, 40)
    with pytest.raises(ValueError, match="the image has 40 x 50 pixels, expected 1999 at most"):
        decode_image(file.getvalue(), most_pixels=1999)


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_colour_is_read_exactly(tmp_path, suffix):
    path = save(Image.fromarray(COLOUR), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(path), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".pgm", ".tif"])
def test_grey_and_single_bits_are_one_channel(tmp_path, suffix):
    path = save(Image.fromarray(GREY), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(path), GREY[None])
    if suffix != ".pgm":
        path = save(Image.fromarray(GREY > 99), tmp_path / f"b{suffix}")
        np.testing.assert_array_equal(read_image(path), 255 * (GREY[None] > 99))


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif"])
def test_palettes_are_looked_up(tmp_path, suffix):
    image = Image.fromarray(COLOUR).quantize(16)
    path = save(image, tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("suffix", WITH_ORIENTATION)
def test_an_orientation_is_applied(tmp_path, suffix, orientation):
    exif = Image.Exif()
    plain = read_image(save(Image.fromarray(COLOUR), tmp_path / f"plain{suffix}"))
    exif[0x0112] = orientation
    found = read_image(save(Image.fromarray(COLOUR), tmp_path / f"a{suffix}", exif=exif))
    np.testing.assert_array_equal(found, ORIENTED[orientation](plain.transpose(1, 2, 0)).transpose(2, 0, 1))


def test_an_orientation_behind_the_pixels_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = png(COLOUR, 8, 2).removesuffix(chunk(b"IEND", b""))
    (tmp_path / "a.png").write_bytes(data + chunk(b"eXIf", exif.tobytes()[6:]) + chunk(b"IEND", b""))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(COLOUR, -1).transpose(2, 0, 1))


def sixteen_bits(path: Path) -> None:
    deep = COLOUR.astype(np.uint16) * 256 + 7
    if path.suffix == ".png":
        path.write_bytes(png(deep, 16, 2))
    elif path.suffix == ".ppm":
        path.write_bytes(b"P6\n9 6\n65535\n" + deep.astype(">u2").tobytes())
    else:  # a TIFF of one strip: width, height, bits, no compression, RGB, strip's place, samples, rows, size
        tags = [(256, 3, 1, 9), (257, 3, 1, 6), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 200)]
        tags += [(277, 3, 1, 3), (278, 3, 1, 6), (279, 4, 1, deep.nbytes)]
        entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
        head = b"II*\0" + struct.pack("<I", 14) + struct.pack("<HHH", 16, 16, 16)
        path.write_bytes((head + directory).ljust(200, b"\0") + deep.astype("<u2").tobytes())


@pytest.mark.parametrize("suffix", [".png", ".ppm", ".tif"])
def test_sixteen_bits_of_colour_are_refused(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    sixteen_bits(path)
    assert Image.open(path).mode == "RGB", "Pillow says nothing of the bits that it drops"
    with pytest.raises(ValueError, match=rf"deep{suffix} has 16 bits a channel, expected 8"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_of_grey_are_refused(tmp_path, suffix):
    path = save(Image.fromarray(GREY.astype(np.uint16) * 257), tmp_path / f"deep{suffix}")
    with pytest.raises(ValueError, match=rf"deep{suffix} has .*expected 8"):
        read_image(path)


def test_fewer_bits_are_read(tmp_path):
    """A PPM of 16 levels loses nothing in 8 bits; the highest level is white."""
    levels = COLOUR // 16
    (tmp_path / "a.ppm").write_bytes(b"P6\n9 6\n15\n" + levels.tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "a.ppm"), (17 * levels).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "pixels", "colour_type", "transparent"),
    [
        ("grey", GREY[..., None], 0, b"\0\7"),
        ("colour", COLOUR, 2, b"\0\1\0\2\0\3"),
        ("palette", GREY[..., None] // 128, 3, b"\xff\0"),
    ],
)
def test_a_transparent_colour_is_refused(tmp_path, name, pixels, colour_type, transparent):
    between = [chunk(b"PLTE", bytes(range(6)))] if name == "palette" else []
    path = tmp_path / f"{name}.png"
    path.write_bytes(png(pixels, 8, colour_type, *between))
    assert read_image(path).shape == (1 if name == "grey" else 3, 6, 9)
    path.write_bytes(png(pixels, 8, colour_type, *between, chunk(b"tRNS", transparent)))
    with pytest.raises(ValueError, match=rf"{name}\.png has pixels of mode \w+ with transparency"):
        read_image(path)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", ".png"), ("RGBA", ".gif"), ("RGBA", ".tif"), ("RGBA", ".webp"), ("LA", ".png"), ("LA", ".tif")],
)
def test_alpha_is_refused(tmp_path, mode, suffix):
    image = Image.fromarray(COLOUR).convert("RGB")
    image.putalpha(Image.fromarray(GREY // 128 * 255))
    path = save(image.convert(mode), tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=r"with transparency"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".webp"])
def test_several_frames_are_refused(tmp_path, suffix):
    frames = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    path = save(frames[0], tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"has several frames, expected one"):
        read_image(path)


def test_signed_numbers_are_refused(tmp_path):
    """Pillow reads -1 as 255, which is white."""
    path = save(Image.fromarray(GREY), tmp_path / "a.tif", tiffinfo={339: 2})
    assert Image.open(path).mode == "L"
    with pytest.raises(ValueError, match=r"a\.tif has signed numbers, expected 8-bit"):
        read_image(path)


def gif_of(path: Path, place: tuple[int, int], size: tuple[int, int]) -> None:
    """A GIF of so many pixels whose frame, of 9 x 6, begins at a place in it."""
    image = Image.fromarray(GREY % 2, "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    data = bytearray(save(image, path).read_bytes())
    data[6:10] = struct.pack("<HH", *size)
    frame = data.index(b"," + struct.pack("<HHHH", 0, 0, 9, 6)) + 1
    data[frame : frame + 4] = struct.pack("<HH", *place)
    path.write_bytes(data)


def webp_of(path: Path, place: tuple[int, int], size: tuple[int, int]) -> None:
    """The same as a WebP animation of one frame."""

    def number(value: int) -> bytes:
        return value.to_bytes(3, "little")

    def part(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)

    pixels = save(Image.fromarray(COLOUR), path).read_bytes()[12:]
    frame = b"".join(number(n) for n in (place[0] // 2, place[1] // 2, 8, 5, 100)) + b"\0" + pixels
    canvas = b"\2\0\0\0" + number(size[0] - 1) + number(size[1] - 1)
    path.write_bytes(webp(part(b"VP8X", canvas) + part(b"ANIM", bytes(6)) + part(b"ANMF", frame)))


@pytest.mark.parametrize("write", [gif_of, webp_of])
def test_pixels_that_no_frame_covers_are_refused(tmp_path, write):
    """Viewers show what is behind the image there; Pillow makes it black, or the first colour."""
    path = tmp_path / ("a.gif" if write is gif_of else "a.webp")
    write(path, (0, 0), (9, 6))
    whole = read_image(path)
    assert whole.shape == (3, 6, 9)
    for place, size in (((0, 0), (10, 6)), ((0, 0), (9, 7)), ((2, 2), (11, 8)), ((2, 2), (20, 20))):
        write(path, place, size)
        assert Image.open(path).size == size
        with pytest.raises(ValueError, match=r"has pixels that its frame leaves out"):
            read_image(path)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", ".jpg"), ("CMYK", ".tif"), ("F", ".tif"), ("I", ".tif")])
def test_other_pixels_are_refused(tmp_path, mode, suffix):
    path = save(Image.fromarray(COLOUR).convert(mode), tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match=rf"a{suffix} has .*expected 8"):
        read_image(path)


def test_formats_that_no_suffix_names_are_not_opened(tmp_path):
    """Pillow reads by content; some of what it knows starts other programs, such as PostScript's interpreter."""
    assert {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMATS)
    save(Image.fromarray(COLOUR), tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png can't be read as an image"):
        read_image(tmp_path / "a.png")


def test_an_image_of_too_many_pixels_is_refused_undecoded(tmp_path):
    header = struct.pack(">IIBBBBB", 1 << 13, 1 << 13, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    (tmp_path / "a.png").write_bytes(data + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"a\.png has 8192 x 8192 pixels, expected 33554432 at most"):
        read_image(tmp_path / "a.png")


def webp(chunk: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiled(side: int, compression: int) -> bytes:
    """A TIFF of 9 x 6 pixels in one compressed tile of side x side."""
    tags = [(256, 3, 1, 9), (257, 3, 1, 6), (258, 3, 3, 8), (259, 3, 1, compression), (262, 3, 1, 2), (277, 3, 1, 3)]
    tags += [(322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 200), (325, 4, 1, 100)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"II*\0" + struct.pack("<I", 14) + struct.pack("<HHH", 8, 8, 8)
    return (head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)).ljust(200, b"\0") + bytes(100)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("canvas.webp", webp(b"VP8X\x0a\0\0\0\x10\0\0\0" + b"\xff\x2f\0" * 2), "has 150994944 pixels"),
        ("one.webp", webp(b"VP8L\x0a\0\0\0\x2f" + struct.pack("<I", 0x2FFF | 0x2FFF << 14) + b"\0" * 5), "150994944"),
        ("lossy.webp", webp(b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 12288, 12288)), "150994944"),
        ("tiles.tif", tiled(16384, 5), "has tiles of more than 33554432 pixels"),
        # a chunk of 4 GB, which Pillow would make room for
        ("chunk.png", png(COLOUR, 8, 2)[:50] + b"\xff" * 4 + b"IDAT", "can't be read as an image"),
        ("chunk2.png", png(COLOUR, 8, 2, b"\xff\xff\xff\xfftEXt"), "can't be read as an image"),
    ],
)
def test_no_room_is_made_for_what_is_not_there(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), before[1]))
    try:
        with pytest.raises(ValueError, match=rf"{name} .*{words}") as error:
            read_image(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert "memory" not in str(error.value).lower()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("cut", [0, 2, 6, 20, 90])
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_truncated_files_are_named(tmp_path, suffix, cut):
    pixels = RANDOM.integers(0, 256, (28, 28), dtype=np.uint8)
    path = save(Image.fromarray(pixels), tmp_path / f"whole{suffix}")
    (tmp_path / f"cut{suffix}").write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"cut{suffix} (can't be read as an image|has )"):
        read_image(tmp_path / f"cut{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".npy", ".pt"])
def test_only_regular_files_are_read(tmp_path, suffix):
    """A pipe that nobody writes to would be read for ever."""
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=rf"pipe{suffix}: expected a file, found a pipe"):
        next(open_collection(pipe).batches(1))
    device = tmp_path / f"device{suffix}"
    device.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"device{suffix}: expected a file, found a device"):
        next(open_collection(device).batches(1))
