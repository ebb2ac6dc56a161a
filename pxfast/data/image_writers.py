"""Images to files, in batches: a .npy or a .pt file, one .png, or a folder of PNG files. All of it is without loss."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch

from ..base.files import output_files, output_folder, write_content
from .image_decoding import IMAGE_SUFFIXES
from .image_files import Contents, write_png
from .images import Images

Write: TypeAlias = Callable[[Images], object]
ARRAYS = (".npy", ".pt")


def check_output(out: Path, *suffixes: str) -> str:
    """As :func:`check_output_suffix`. FileNotFoundError where the folder that it is to be in isn't there."""
    suffix = check_output_suffix(out, *suffixes)
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"no such folder: {out.absolute().parent}")
    return suffix


def check_output_suffix(out: Path, *suffixes: str) -> str:
    """The suffix of an output, in lower case, one of these; '' is a folder's, and of any folder that is there already.

    ValueError for another one.
    """
    suffix = out.suffix.lower()
    if suffix not in suffixes:
        if "" not in suffixes or suffix in (*ARRAYS, *IMAGE_SUFFIXES) or not out.is_dir():
            wanted = " or ".join(each for each in suffixes if each)
            lossy = ", never a lossy format" if ".png" in suffixes else ""
            folder = "; a folder has none" if "" in suffixes else ""
            raise ValueError(f"{out}: this output must have the suffix {wanted}{lossy}{folder}")
        suffix = ""
    return suffix


def check_image_output(out: Path, contents: Contents) -> str:
    """The kind of an output: '.npy', '.pt', '.png' or '', a folder; nothing is written yet.

    Raises what :func:`check_output` raises, and ValueError where this kind of file can't hold such images.
    """
    kind = check_output(out, *ARRAYS, ".png", "")
    check_one_png(out, kind, len(contents.names))
    if kind in (".png", "") and contents.shape[0] not in (1, 3):
        raise ValueError(f"{out}: PNG files are of 1 or 3 channels, and the images have {contents.shape[0]}")
    if kind == ".npy" and contents.dtype == torch.bfloat16:
        raise ValueError(f"{out}: a .npy file can't hold bfloat16; write a .pt file")
    return kind


def refuse_input_folder(out: Path, source: Path, *, parts: bool = False) -> None:
    """ValueError where an output folder is the source of the images or holds it. parts: or lies within it."""
    folder, source = out.resolve(), source.resolve()
    if folder == source:
        raise ValueError(f"{out} is the input folder; write elsewhere")
    if folder in source.parents:
        raise ValueError(f"{out} is a folder that the input lies in; write elsewhere")
    if parts and source in folder.parents:
        raise ValueError(f"{out} lies in the input folder; write elsewhere")


def check_one_png(out: Path, kind: str, count: int) -> None:
    """ValueError where many images would go into one .png."""
    if kind == ".png" and count != 1:
        raise ValueError(f"{out}: a .png holds one image, and there are {count}; write a folder or a .npy file")


@contextlib.contextmanager
def image_writer(
    out: Path, contents: Contents, *others: Path, force: bool, source: Path | None = None
) -> Iterator[tuple[Write, list[Path]]]:
    """Give a function that takes batches of images, in order, and writes ``out``, whose suffix says what it is; and
    temporary paths of ``others``, files that appear beside it.

    ``out`` appears whole when the block ends, and not at all when it ends by an exception. source: where the images
    come from, which is not replaced. Raises what :func:`check_image_output` and
    :func:`pxfast.base.files.output_files` raise.
    """
    kind = check_image_output(out, contents)
    if not kind:
        with png_folder(out, *others, source=source, force=force) as (folder, rest):
            yield folder_writer(folder, contents.names), rest
        return
    with output_files(out, *others, force=force) as (temporary, *rest):
        if kind == ".png":
            yield lambda images: write_png(images[0], temporary), rest
        elif kind == ".npy":
            dtype = torch.zeros(0, dtype=contents.dtype).numpy().dtype
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
            with open(temporary, "wb") as file:
                np.lib.format.write_array_header_2_0(file, {**header, "shape": contents.full_shape})
                yield lambda images: file.write(np.ascontiguousarray(images).data), rest
        else:
            parts: list[torch.Tensor] = [torch.zeros((0, *contents.shape), dtype=contents.dtype)]
            yield lambda images: parts.append(torch.as_tensor(images).cpu()), rest
            buffer = io.BytesIO()  # torch.save itself hides why a write failed
            torch.save(torch.cat(parts).reshape(contents.full_shape), buffer)
            write_content(temporary, buffer.getbuffer())


def folder_writer(folder: Path, names: Sequence[str]) -> Write:
    """A function that takes batches of images, in order, and writes them as PNG under these names."""
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    if twice:
        raise ValueError(f"there are several images that would be written as {min(twice)}.png")
    remaining = iter(names)

    def write(images: Images) -> None:
        for image in images:
            write_png(image, folder / f"{next(remaining)}.png")

    return write


@contextlib.contextmanager
def png_folder(
    out: Path, *others: Path, source: Path | None = None, force: bool, beside: Sequence[str] = ()
) -> Iterator[tuple[Path, list[Path]]]:
    """A folder of PNG files in the making, and files that appear with it: see :func:`pxfast.base.files.output_folder`.

    A folder is replaced only when it holds nothing but PNG files and those called ``beside``, and not the source.
    """

    def check_replaceable(path: Path) -> None:
        if path.is_symlink() or not path.is_dir():
            raise ValueError(f"{path} is not a folder; remove it, or write elsewhere")
        if source is not None:
            refuse_input_folder(path, source)
        for file in path.iterdir():
            if not file.is_file() or (file.suffix.lower() != ".png" and file.name not in beside):
                raise ValueError(f"{path} is not replaced, because it holds more than PNG files, such as {file.name}")

    with output_folder(out, *others, force=force, check=check_replaceable) as (folder, rest):
        yield folder, rest
