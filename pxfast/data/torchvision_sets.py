"""torchvision's data sets by name: where their files lie, how they are read, and how they are fetched where asked."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base.extras import require
from ..base.files import claimed
from ..base.streams import note
from ..base.unfinished import workplace

WAIT = 0.5  # seconds between looks at whether another process has fetched the files


@dataclasses.dataclass(frozen=True)
class NamedSet:
    """A data set of torchvision's.

    title: as it is written in text. shape: (C, H, W) of its images. classes: how many. kind: the name of torchvision's
    class. training, test: what lies under the root for either part, a folder or a file. mirrored: whether an image's
    mirror image is as likely, as of objects and not of digits. mirrored_class: whether it is of the same class, as that
    of a shoe, though all shoes point to the left.
    """

    title: str
    shape: tuple[int, int, int]
    classes: int
    kind: str
    training: str
    test: str
    mirrored: bool = False
    mirrored_class: bool = False


SETS = {
    "fashion-mnist": NamedSet(
        "Fashion-MNIST", (1, 28, 28), 10, "FashionMNIST", "FashionMNIST/raw", "FashionMNIST/raw", mirrored_class=True
    ),
    "cifar10": NamedSet(
        "CIFAR-10",
        (3, 32, 32),
        10,
        "CIFAR10",
        "cifar-10-batches-py",
        "cifar-10-batches-py",
        mirrored=True,
        mirrored_class=True,
    ),
    "mnist": NamedSet("MNIST", (1, 28, 28), 10, "MNIST", "MNIST/raw", "MNIST/raw"),
    "svhn": NamedSet("SVHN", (3, 32, 32), 10, "SVHN", "train_32x32.mat", "test_32x32.mat"),
    "cifar100": NamedSet(
        "CIFAR-100",
        (3, 32, 32),
        100,
        "CIFAR100",
        "cifar-100-python",
        "cifar-100-python",
        mirrored=True,
        mirrored_class=True,
    ),
}


def read_set(name: str, root: Path, shape: tuple[int, int, int], *, train: bool) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, C, H, W), each of ``shape``, and labels int64 (N,) of a named data set.

    Raises FileNotFoundError where its files are not there, ValueError where they are damaged, and ImportError where
    SVHN's need scipy.
    """
    known = SETS[name]
    place = root / (known.training if train else known.test)
    if not place.exists():
        raise FileNotFoundError(
            f"{name} was not found under {root}: expected {place} there, in torchvision's layout; nothing is "
            "downloaded unless --download (download=True) asks for it"
        )
    try:
        dataset = _made(name, root, train=train)
    except ImportError:
        raise
    except Exception as error:  # torchvision's parsing meets AssertionError, KeyError, IndexError, ...
        problem = str(error).partition(" You can use download")[0] or type(error).__name__
        raise ValueError(f"{name} under {root} is damaged: {problem}; remove {place} and fetch it again") from None
    data = torch.as_tensor(dataset.data)
    labels = torch.as_tensor(dataset.labels if name == "svhn" else dataset.targets, dtype=torch.int64)
    channels, H, W = shape
    if data.dim() == 3:
        data = data.unsqueeze(1)
    elif name != "svhn":  # which torchvision has as (N, C, H, W)
        data = data.permute(0, 3, 1, 2) if data.dim() == 4 else data
    expected = (len(labels), channels, H, W)
    good = data.dtype == torch.uint8 and tuple(data.shape) == expected and len(labels) > 0
    if not good or data.untyped_storage().nbytes() < data.numel() or labels.min() < 0 or labels.max() >= known.classes:
        raise ValueError(
            f"{name} under {root} is damaged: expected uint8 images of shape {expected} and as many labels in "
            f"0..{known.classes - 1}, found {data.dtype} {tuple(data.shape)}"
        )
    return data.contiguous(), labels


def _made(name: str, root: Path, *, train: bool, download: bool = False) -> Any:
    """torchvision's object of one part of a data set, which holds all of it."""
    if name == "svhn":
        require("scipy", "evaluate")  # by which torchvision reads its files
    from torchvision import datasets

    part: dict[str, Any] = {"split": "train" if train else "test"} if name == "svhn" else {"train": train}
    return getattr(datasets, SETS[name].kind)(os.fspath(root), download=download, **part)


def fetch_set(name: str, root: Path, *, progress: bool) -> None:
    """Have torchvision download the parts of a named data set that are not under ``root``, which is made if need be.

    What is downloaded appears whole, and what is there is left as it is. Other processes that fetch the same wait for
    this one. Raises OSError where the download fails.
    """
    known = SETS[name]
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"{name}.download"
    with _alone(target, progress), workplace(target) as (folder, _):
        for train, part in ((True, known.training), (False, known.test)):
            if (root / part).exists():
                continue
            note(f"downloading {known.title} to {root}", quiet=not progress)
            try:
                with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
                    _made(name, folder, train=train, download=True)
            except ImportError:
                raise
            except Exception as error:  # torchvision's downloads meet URLError, RuntimeError, zlib.error, ...
                problem = " ".join(str(error).split()) or type(error).__name__
                raise ConnectionError(f"{known.title} could not be downloaded to {root}: {problem}") from None
            (root / part).parent.mkdir(exist_ok=True)
            os.rename(folder / part, root / part)


@contextlib.contextmanager
def _alone(target: Path, progress: bool) -> Iterator[None]:
    """Be the only process that fetches a data set, after the others that do are done."""
    quiet = not progress
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(claimed(target))
                break
            except BlockingIOError:
                note(f"another process is downloading {target.stem}: waiting for it", quiet=quiet)
                quiet = True
                time.sleep(WAIT)
        yield
