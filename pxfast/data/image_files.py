"""Collections of images on disk, read in batches: a folder, one image file, a .npy or a .pt file.

:mod:`pxfast.data.image_writers` writes them.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch

from ..base.files import write_content
from .arrays import check_images, check_values, map_array
from .image_decoding import IMAGE_SUFFIXES, array_pillow, read_image
from .images import Array, Images, to_grid
from .tensor_pickle import read_tensor


@dataclasses.dataclass(frozen=True)
class Contents:
    """What is to be written. names: of the images, without a suffix, as files in a folder have them. shape: (C, H, W).
    dtype: of the values. batched: whether a file of one image has an axis for it.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.uint8
    batched: bool = True

    @property
    def full_shape(self) -> tuple[int, ...]:
        return (len(self.names), *self.shape) if self.batched else self.shape


class Collection(Protocol):
    """Images of one shape on disk.

    path: where they are. names: one per image. batches: the images in order, at most ``size`` at a time, in a form that
    ``pxfast.purify`` takes. contents: what a file of as many other such images holds.
    """

    path: Path
    names: list[str]

    def batches(self, size: int) -> Iterator[Images]: ...

    def contents(self) -> Contents: ...


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


def check_collection(collection: Collection, size: int = 256) -> None:
    """Read all images once, so that no wrong one among them ends the work in its midst. Raises what ``batches`` do."""
    for _ in collection.batches(size):
        pass


def numbered(count: int, stems: Sequence[str] | None = None) -> list[str]:
    """Names of ``count`` images whose order is that of their numbers. stems: what the names add to these."""
    digits = max(5, len(str(count - 1)))
    numbers = [f"{i:0{digits}d}" for i in range(count)]
    return [n if stems is None or stems[i] == n else f"{n}-{stems[i]}" for i, n in enumerate(numbers)]


def stem(name: str) -> str:
    """A file's name without its suffix."""
    return os.path.splitext(name)[0]


def write_png(image: Images, path: Path | BinaryIO) -> None:
    """Write one (C, H, W) image losslessly. An OSError leaves a partial file: give it a temporary path."""
    grid, _ = to_grid(image)
    buffer = io.BytesIO()  # given a path, Pillow hides which file could not be written
    array_pillow(grid[0].numpy()).save(buffer, format="PNG")
    if isinstance(path, Path):
        write_content(path, buffer.getbuffer())
    else:
        path.write(buffer.getbuffer())


def write_npy(array: Array, path: Path) -> None:
    """Write an array as a .npy file. An OSError leaves a partial file: give it a temporary path."""
    with open(path, "wb+") as file:  # of another type than "wb", for which NumPy hides why a write failed
        np.save(file, array, allow_pickle=False)


class ImageFile:
    """A single image file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = [path.name]

    def batches(self, size: int) -> Iterator[Array]:
        yield read_image(self.path)[None]

    def contents(self) -> Contents:
        return Contents([stem(self.path.name)], read_image(self.path).shape)


class ImageFolder:
    """The image files directly in a folder, by name; hidden and other files are left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        self.files: list[Path] = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        self.names: list[str] = [file.name for file in self.files]
        if not self.files:
            inside = sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
            hint = f" directly in it; it has folders, such as {path / inside[0]}" if inside else ""
            raise ValueError(f"{path} has no image files ({' '.join(IMAGE_SUFFIXES)}){hint}")

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

    def contents(self) -> Contents:
        return Contents([stem(name) for name in self.names], read_image(self.files[0]).shape)


class ArrayFile:
    """A .npy file, (N, C, H, W) or (C, H, W), read through a memory map."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.array: Array = map_array(path)
        self.batched: Array = check_images(self.array, path)
        self.names: list[str] = [str(i) for i in range(len(self.batched))]

    def batches(self, size: int) -> Iterator[Array]:
        for start in range(0, len(self.batched), size):
            yield check_values(self.batched[start : start + size], self.path)

    def contents(self) -> Contents:
        dtype = torch.from_numpy(np.zeros(0, self.array.dtype.newbyteorder("="))).dtype
        return Contents(numbered(len(self.names)), self.batched.shape[1:], dtype, self.array.ndim == 4)


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

    def contents(self) -> Contents:
        shape = tuple(self.batched.shape[1:])
        return Contents(numbered(len(self.names)), shape, self.tensor.dtype, self.tensor.ndim == 4)


KINDS: dict[str, Callable[[Path], Collection]] = {
    ".npy": ArrayFile,
    ".pt": TensorFile,
    **dict.fromkeys(IMAGE_SUFFIXES, ImageFile),
}
