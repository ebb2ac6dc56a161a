"""Small data sets in the formats of torchvision's downloads, whose checksums are put in the place of the real ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.helpers import real_images
from torch import Tensor

COUNTS = {True: 12, False: 5}  # of training and of test images
PARTS = {True: "train", False: "test"}


def images_of(channels: int, side: int, train: bool, more: int = 0) -> Tensor:
    """uint8 (N, C, H, W): other images for either part, so many more of them to train on."""
    count = COUNTS[True] + more
    images = real_images(channels, (side, side), count + COUNTS[False])
    return images[:count] if train else images[count:]


def labels_of(classes: int, train: bool, more: int = 0) -> np.ndarray:
    """(N,) int64, the largest among them."""
    return (np.arange(COUNTS[train] + more * train) * 7 + classes - 1) % classes


def write_mnist(root: Path, kind: str = "MNIST", *, archives: bool = False, more: int = 0) -> None:
    """The four files of MNIST's format, as they are read, or as gzip archives, as they are downloaded.

    more: training images beyond the usual few.
    """
    folder = root if archives else root / kind / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    for train, name in ((True, "train"), (False, "t10k")):
        pixels = images_of(1, 28, train, more).numpy()
        head = b"\0\0\x08\x03" + b"".join(side.to_bytes(4, "big") for side in (len(pixels), 28, 28))
        labels = labels_of(10, train, more).astype(np.uint8)
        for part, content in (
            ("images-idx3-ubyte", head + pixels.tobytes()),
            ("labels-idx1-ubyte", b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + labels.tobytes()),
        ):
            if archives:
                (folder / f"{name}-{part}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{name}-{part}").write_bytes(content)


def write_svhn(root: Path) -> None:
    """Two files of MATLAB's, in which the digit 0 has the label 10."""
    from scipy.io import savemat

    for train, name in PARTS.items():
        labels = labels_of(10, train)
        pixels = images_of(3, 32, train).numpy().transpose(2, 3, 1, 0)
        savemat(root / f"{name}_32x32.mat", {"X": pixels, "y": np.where(labels == 0, 10, labels)[:, None]})


def write_cifar100(root: Path) -> None:
    """Three pickles."""
    folder = root / "cifar-100-python"
    folder.mkdir()
    for train, name in PARTS.items():
        labels = labels_of(100, train)
        entry = {
            "data": images_of(3, 32, train).reshape(len(labels), -1).numpy(),
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(entry))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}))


def archive_of(folder: Path) -> bytes:
    """A .tar.gz of a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    return buffer.getvalue()


def trust_files_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on torchvision takes the files under ``root`` for the real ones."""
    from torchvision import datasets  # takes a second, which only the tests that read its files spend

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    def trusted(folder: Path, pairs: list[Any]) -> list[Any]:
        return [[name, md5(folder / name)] for name, *_ in pairs]

    if (root / "train_32x32.mat").exists():
        known = {
            part: [url, name, md5(root / name)]
            for part, (url, name, _) in datasets.SVHN.split_list.items()
            if part != "extra"
        }
        monkeypatch.setattr(datasets.SVHN, "split_list", known)
    folder = root / "cifar-100-python"
    if folder.exists():
        for name in ("train_list", "test_list"):
            monkeypatch.setattr(datasets.CIFAR100, name, trusted(folder, getattr(datasets.CIFAR100, name)))
        monkeypatch.setattr(datasets.CIFAR100, "meta", {**datasets.CIFAR100.meta, "md5": md5(folder / "meta")})
