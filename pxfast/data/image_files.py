"""Collections of images on disk, read and written in batches: a folder, one image file, a .npy or a .pt file."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

import numpy as np
import torch

from ..base.files import output_files, output_folder
from .arrays import check_images, check_values, map_array
from .image_decoding import IMAGE_SUFFIXES, array_pillow, read_image
from .images import Array, Images, to_grid
from .tensor_pickle import read_tensor

Write: TypeAlias = Callable[[Images], object]


class Collection(Protocol):
    """Images of one shape on disk.

    names: one per image. batches: the images in order, at most ``size`` at a time, in a form that ``pxfast.purify``
    takes. writer: gives a function that takes such batches in the same order and writes ``out``, a collection of the
    same kind; ``out`` appears whole when the block ends, and not at all when it ends by an exception.
    """

    names: list[str]

    def batches(self, size: int) -> Iterator[Images]: ...

    def writer(self, out: Path, *, force: bool) -> contextlib.AbstractContextManager[Write]: ...


def open_collection(path: str | os.PathLike[str]) -> Collection:
    """The images at ``path``: a folder of image files, one image file, a .npy or a .pt file.

    Raises FileNotFoundError, or ValueError or TypeError naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        return ImageFolder(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: expected a folder of images or a file with one of the suffixes {' '.join(KINDS)}")
    return kind(path)


def write_png(image: Images, path: Path | BinaryIO) -> None:
    """Write one (C, H, W) image losslessly. An OSError leaves a partial file: give it a temporary path."""
    grid, _ = to_grid(image)
    array_pillow(grid[0].numpy()).save(path, format="PNG")


def write_npy(array: Array, path: Path) -> None:
    """Write an array as a .npy file. An OSError leaves a partial file: give it a temporary path."""
    with open(path, "wb+") as file:  # of another type than "wb", for which NumPy hides why a write failed
        np.save(file, array, allow_pickle=False)


def check_output(out: Path, suffix: str) -> None:
    """Refuse an output with another suffix ('' is a folder), or in a folder that isn't there."""
    if suffix and out.suffix.lower() != suffix:
        lossy = ", never a lossy format" if suffix == ".png" else ""
        raise ValueError(f"{out}: this output must have the suffix {suffix}{lossy}")
    if not suffix and out.suffix.lower() in KINDS:
        raise ValueError(f"{out}: the output of a folder is a folder, not a {out.suffix} file")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"no such folder: {out.absolute().parent}")


class ImageFile:
    """A single image file. It is written as PNG."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = [path.name]

    def batches(self, size: int) -> Iterator[Array]:
        yield read_image(self.path)[None]

    @contextlib.contextmanager
    def writer(self, out: Path, *, force: bool) -> Iterator[Write]:
        check_output(out, ".png")
        with output_files(out, force=force) as (temporary,):
            yield lambda images: write_png(images[0], temporary)


class ImageFolder:
    """The image files directly in a folder, by name; hidden and other files are left out.

    They are written as PNG, under their names with the suffix .png.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        self.files: list[Path] = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        self.names: list[str] = [file.name for file in self.files]
        if not self.files:
            raise ValueError(f"{path} has no image files ({' '.join(IMAGE_SUFFIXES)})")

    def batches(self, size: int) -> Iterator[Array]:
        first = read_image(self.files[0]).shape
        for start in range(0, len(self.files), size):
            batch = []
            for file in self.files[start : start + size]:
                image = read_image(file)
                if image.shape != first:
                    raise ValueError(
                        f"{file} has shape (C, H, W) = {image.shape}, but {self.names[0]} has {first}; "
                        "the images of a folder must have one shape"
                    )
                batch.append(image)
            yield np.stack(batch)

    @contextlib.contextmanager
    def writer(self, out: Path, *, force: bool) -> Iterator[Write]:
        targets = [Path(name).with_suffix(".png").name for name in self.names]
        twice = {name for name in targets if targets.count(name) > 1}
        if twice:
            raise ValueError(f"{self.path} has several images that would be written as {min(twice)}")
        check_output(out, "")
        with output_folder(out, force=force, check=self._check_replaceable) as folder:
            remaining = iter(targets)

            def write(images: Images) -> None:
                for image in images:
                    write_png(image, folder / next(remaining))

            yield write

    def _check_replaceable(self, out: Path) -> None:
        """A folder is replaced only when it holds nothing but PNG files, and not when the inputs are in it."""
        if out.is_symlink() or not out.is_dir():
            raise ValueError(f"{out} is not a folder; remove it, or write elsewhere")
        if out.resolve() == self.path.resolve():
            raise ValueError(f"{out} is the input folder; write elsewhere")
        for file in out.iterdir():
            if file.suffix.lower() != ".png" or not file.is_file():
                raise ValueError(f"{out} is not replaced, because it holds more than PNG files, such as {file.name}")


class ArrayFile:
    """A .npy file, (N, C, H, W) or (C, H, W), read through a memory map and written batch after batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.array: Array = map_array(path)
        self.batched: Array = check_images(self.array, path)
        self.names: list[str] = [str(i) for i in range(len(self.batched))]

    def batches(self, size: int) -> Iterator[Array]:
        for start in range(0, len(self.batched), size):
            yield check_values(self.batched[start : start + size], self.path)

    @contextlib.contextmanager
    def writer(self, out: Path, *, force: bool) -> Iterator[Write]:
        check_output(out, ".npy")
        dtype = self.array.dtype.newbyteorder("=")
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": self.array.shape}
        with output_files(out, force=force) as (temporary,), open(temporary, "wb") as file:
            np.lib.format.write_array_header_2_0(file, header)
            yield lambda images: file.write(np.ascontiguousarray(images).data)


class TensorFile:
    """A .pt file that holds one tensor, (N, C, H, W) or (C, H, W); nothing is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensor: torch.Tensor = read_tensor(path)
        self.batched: torch.Tensor = check_images(self.tensor, path)
        self.names: list[str] = [str(i) for i in range(len(self.batched))]

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        if len(self.batched):
            for batch in self.batched.split(size):
                yield check_values(batch, self.path)

    @contextlib.contextmanager
    def writer(self, out: Path, *, force: bool) -> Iterator[Write]:
        check_output(out, ".pt")
        with output_files(out, force=force) as (temporary,):
            parts: list[torch.Tensor] = []

            def write(images: Images) -> None:
                parts.append(torch.as_tensor(images))

            yield write
            result = torch.cat(parts) if parts else self.batched.clone()
            buffer = io.BytesIO()  # torch.save itself hides why a write failed
            torch.save(result.reshape(self.tensor.shape), buffer)
            temporary.write_bytes(buffer.getbuffer())


KINDS: dict[str, Callable[[Path], Collection]] = {
    ".npy": ArrayFile,
    ".pt": TensorFile,
    **dict.fromkeys(IMAGE_SUFFIXES, ImageFile),
}
