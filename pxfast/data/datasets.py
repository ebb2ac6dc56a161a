"""Data sets as uint8 tensors: torchvision's, by name, and folders of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..base.checks import check_flag, check_path
from .image_decoding import IMAGE_SUFFIXES, read_image
from .torchvision_sets import SETS, fetch_set, read_set

DATASETS: dict[str, tuple[int, int, int]] = {name: known.shape for name, known in SETS.items()}
"""The data sets that are known by name, each with (C, H, W) of its images."""

TITLES: dict[str, str] = {name: known.title for name, known in SETS.items()}  # as they are written in text

GOLDEN = 2654435769  # 2^32 over the golden ratio: whose multiples are spread evenly over 0..2^32, however many

UNLABELLED = -1  # the label of images that are in no class's folder
PARTS = ("train", "training", "test", "testing", "val", "valid", "validation")  # what parts of a split are called
HELD_OUT = 10  # one image in this many is held out from training, in a folder without a split


def load_dataset(
    dataset: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    train: bool | None,
    download: bool = False,
    progress: bool = True,
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,) int64 of a data set.

    dataset: 'fashion-mnist', 'cifar10', 'mnist', 'svhn' or 'cifar100', read by torchvision from ``root``, its root
    folder; or a folder of image files, for which ``root`` isn't used. A folder has a subfolder for each class, as
    torchvision's ImageFolder wants it (labels count these by name), or holds the images itself (labels are -1); and
    that either twice, in subfolders ``train`` and ``test``, or once. Images are ordered by path, and have one shape.

    train: True for the training images, False for the test images; of a folder that is not split, every tenth image is
    a test image, the first one included. None: all images of a folder that is not split, or else the test images.
    download: have torchvision download what is not under ``root`` yet, which needs a network; by default nothing is.
    progress: show that on standard error.

    Raises TypeError for a flag of another type, ValueError for an unknown name, damaged files, a folder without images
    or with other parts than ``train`` and ``test``, images of different shapes, or images beside class folders,
    FileNotFoundError when the files are not there, OSError where a download fails, and ImportError where SVHN's files
    need scipy.
    """
    train = None if train is None else check_flag("train", train)
    progress = check_flag("progress", progress)
    if check_flag("download", download):
        fetch_dataset(dataset, root, progress=progress)
    name = os.fspath(check_path("dataset", dataset))
    if name not in DATASETS:
        return _load_folder(Path(dataset), train)
    return read_set(name, _root_of(name, root), DATASETS[name], train=train is True)


def fetch_dataset(
    dataset: str | os.PathLike[str], root: str | os.PathLike[str] | None, *, progress: bool = True
) -> None:
    """Download a named data set to ``root``, unless it is there. ValueError for a folder, which has its images."""
    progress = check_flag("progress", progress)
    name = os.fspath(check_path("dataset", dataset))
    if name not in DATASETS:
        raise ValueError(f"{name} can't be downloaded; known: {', '.join(sorted(DATASETS))}")
    fetch_set(name, _root_of(name, root), progress=progress)


def _root_of(name: str, root: str | os.PathLike[str] | None) -> Path:
    if root is None:
        raise ValueError(f"{name} needs a root: torchvision's root folder")
    return check_path("root", root)


def image_shape(dataset: str | os.PathLike[str]) -> tuple[int, int, int]:
    """(C, H, W) of a data set's images: of a known name, or of a folder by its first image. Raises as load_dataset."""
    check_path("dataset", dataset)
    if os.fspath(dataset) in DATASETS:
        return DATASETS[os.fspath(dataset)]
    files, _ = _folder_files(Path(dataset), None)
    channels, H, W = read_image(files[0]).shape
    return channels, H, W


def image_names(dataset: str | os.PathLike[str]) -> list[str]:
    """The paths in a folder, without suffixes, of its images, as ``load_dataset(..., train=None)`` has them.

    Files of several classes often have the same names.
    """
    folder = Path(dataset)
    return [file.relative_to(folder).with_suffix("").as_posix() for file in _folder_files(folder, None)[0]]


def first_numbers(dataset: str | os.PathLike[str], total: int, count: int) -> list[int]:
    """The numbers of the first ``count`` of ``total`` images; all of them where there are no more.

    Of a data set called by name they are 0, 1 and so on. A folder's images stand class by class: its first ones are
    spread over all of them, whatever the count is, and fewer are the beginning of more.
    """
    if os.fspath(dataset) in DATASETS:
        return list(range(min(count, total)))
    return sorted(range(total), key=lambda number: number * GOLDEN % (1 << 32))[:count]


def first_images(dataset: str | os.PathLike[str], values: Tensor, count: int) -> Tensor:
    """Those of the images, or of their labels, that :func:`first_numbers` says: (N, ...) to (min(N, count), ...)."""
    return values[first_numbers(dataset, len(values), count)]


def named_images(
    dataset: str | os.PathLike[str], root: str | os.PathLike[str] | None, count: int | None
) -> tuple[Tensor, Tensor, list[str] | None]:
    """The first ``count`` of the images of ``load_dataset(..., train=None)``, None for all; their labels and names.

    The names are those of :func:`image_names`, and None of a data set that is called by name. Raises as load_dataset.
    """
    images, labels = load_dataset(dataset, root, train=None)
    numbers = list(range(len(images))) if count is None else first_numbers(dataset, len(images), count)
    known = None if os.fspath(dataset) in DATASETS else image_names(dataset)
    return images[numbers], labels[numbers], None if known is None else [known[number] for number in numbers]


def class_count(dataset: str | os.PathLike[str]) -> int:
    """How many classes a data set has. ValueError for a folder that has no folders of classes, or as load_dataset."""
    if os.fspath(dataset) in DATASETS:
        return SETS[os.fspath(dataset)].classes
    _, labels = _folder_files(Path(dataset), None)
    if UNLABELLED in labels:
        raise ValueError(f"{os.fspath(dataset)} has no labels: a classifier needs a subfolder of images for each class")
    return len(_classes(Path(dataset)))


def is_mirrored(dataset: str | os.PathLike[str]) -> bool:
    """Whether mirror images of a data set's are as likely, and so are flips in training; of a folder nobody knows."""
    known = SETS.get(os.fspath(dataset))
    return known is not None and known.mirrored


def keeps_class_mirrored(dataset: str | os.PathLike[str]) -> bool:
    """Whether mirror images of a data set's are of the same class, so that a classifier may learn from them, too."""
    known = SETS.get(os.fspath(dataset))
    return known is not None and known.mirrored_class


def check_classes(dataset: str | os.PathLike[str], classes: int) -> None:
    """ValueError where a data set has not as many classes as a classifier of it: labels would be of other classes.

    The labels of a folder count its class folders by name, those without images included.
    """
    found = class_count(dataset)
    if found != classes:
        raise ValueError(
            f"{os.fspath(dataset)} has {found} classes, but the classifier has {classes}; "
            "a folder needs a subfolder for each of them, an empty one for a class without images"
        )


def _load_folder(path: Path, train: bool | None) -> tuple[Tensor, Tensor]:
    files, labels = _folder_files(path, train)
    images: list[np.ndarray] = []
    for file in files:
        image = read_image(file)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"{file} has shape (C, H, W) = {image.shape}, but {files[0]} has {images[0].shape}; "
                "the images of a data set must have one shape"
            )
        images.append(image)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels, dtype=torch.int64)


def _folder_files(path: Path, train: bool | None) -> tuple[list[Path], list[int]]:
    """A folder's image files and their labels, those of the wanted part."""
    if not path.is_dir():
        known = ", ".join(sorted(DATASETS))
        raise ValueError(f"unknown data set {os.fspath(path)!r}; known: {known}; or pass a folder of image files")
    parts = _parts(path)
    if len(parts) > 1:
        return _labelled_files(parts[0] if train else parts[1], _classes(path))
    _check_no_other_split(path)
    files, labels = _labelled_files(path, _classes(path))
    if train is not None:
        held_out = [i % HELD_OUT == 0 for i in range(len(files))]
        files = [file for file, out in zip(files, held_out, strict=True) if out != train]
        labels = [label for label, out in zip(labels, held_out, strict=True) if out != train]
    if not files:
        raise ValueError(f"{path} has one image only, which is held out: nothing is left to train on")
    return files, labels


def _parts(path: Path) -> list[Path]:
    """The folders of the training and the test images, or the folder itself."""
    split = [path / "train", path / "test"]
    return split if all(part.is_dir() for part in split) else [path]


def _check_no_other_split(path: Path) -> None:
    """ValueError where a folder without ``train`` and ``test`` seems to be split in another way.

    Its parts would be taken for classes. One class may be called as a part is.
    """
    folders = _subfolders(path)
    parts = [folder for folder in folders if folder.name.lower() in PARTS]
    if parts and (len(parts) == len(folders) or any(_subfolders(each) and not _images_in(each) for each in parts)):
        raise ValueError(
            f"{path} has {', '.join(folder.name for folder in parts)}, which would be its classes: expected both train "
            "and test, or the folders of the classes themselves; rename the folder of the test images to test"
        )


def _classes(path: Path) -> list[str]:
    """The names of a folder's classes, in the order of their labels."""
    return sorted({folder.name for part in _parts(path) for folder in _subfolders(part)})


def _labelled_files(folder: Path, classes: list[str]) -> tuple[list[Path], list[int]]:
    direct = _images_in(folder)
    files, labels = list(direct), [UNLABELLED] * len(direct)
    for label, name in enumerate(classes):
        inside = _images((folder / name).rglob("*"), folder / name) if (folder / name).is_dir() else []
        files += inside
        labels += [label] * len(inside)
    if not files:
        raise ValueError(f"{folder} has no image files ({' '.join(IMAGE_SUFFIXES)}), nor subfolders with any")
    if direct and len(direct) < len(files):
        raise ValueError(f"{folder} has images, such as {direct[0].name}, beside the folders of its classes")
    return files, labels


def _subfolders(folder: Path) -> list[Path]:
    """The folders directly in a folder, by name, but for hidden ones."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images_in(folder: Path) -> list[Path]:
    """The image files directly in a folder, in order, but for hidden ones."""
    return _images(folder.iterdir(), folder)


def _images(paths: Iterable[Path], folder: Path) -> list[Path]:
    """The image files among these paths in a folder, in order, but for hidden ones and those in hidden folders."""
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
