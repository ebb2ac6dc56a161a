"""What a user gives to be evaluated: images with labels, a device, an output folder, a key of what a module does."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.checks import check_channels, check_path, check_text
from ..base.files import check_encodable
from ..base.machine import parse_device
from ..base.streams import shown_name
from ..classifiers.contract import class_labels
from ..classifiers.inspection import SAME_BATCH, device_of, difference
from ..data.datasets import UNLABELLED, class_count, first_images, load_dataset
from ..data.images import Images, to_grid
from ..tensors.identity import identity_of
from ..tensors.store import Entry, Store, canonical, digest
from .report import write_report

TITLES = {"cifar10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST"}
PARTS = ("store", "tables", "figures", "classifiers", "verdicts", "report.html")  # of an evaluation's folder
MOST_TRIALS = 100  # of functions that one key stood for
REPORT_TRIALS, REPORT_PAUSE = 100, 0.1  # seconds
Dataset = str | os.PathLike[str] | tuple[Images, Any]


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Images uint8 (N, C, H, W), labels int64 (N,), what they are called, and how many classes there are, if known."""

    images: Tensor
    labels: Tensor
    name: str
    title: str
    classes: int | None


def labelled_images(dataset: Dataset, root: str | os.PathLike[str] | None, count: int) -> LabelledImages:
    """At most ``count`` images with labels. Raises what :func:`benchmark` says."""
    if isinstance(dataset, (tuple, list)):
        if len(dataset) != 2:
            raise ValueError(f"expected a data set's name, a folder or (images, labels), got {len(dataset)} values")
        images, _ = to_grid(dataset[0])
        labels = class_labels(dataset[1], len(images))
        images, labels, name, classes = images[:count], labels[:count], "images", None
    else:
        check_path("dataset", dataset)
        images, labels = load_dataset(dataset, root, train=False)
        if bool((labels == UNLABELLED).any()):
            raise ValueError(f"{os.fspath(dataset)} has no labels: a benchmark needs a subfolder for each class")
        name, classes = shown_name(dataset), class_count(dataset)
        images, labels = (first_images(dataset, each, count) for each in (images, labels))
    if len(images) < 2:
        raise ValueError(f"expected at least 2 images, got {len(images)}")
    check_channels(images.shape[1])
    name = "".join(letter if letter.isalnum() or letter in "_.+-" else "_" for letter in name).lstrip(".+-") or "images"
    return LabelledImages(images.contiguous(), labels, name, TITLES.get(name, name), classes)


def place_of(model: nn.Module, device: str) -> torch.device:
    """Where the model is. ValueError where another device was asked for."""
    place = device_of(model)
    if check_text("device", device) != "auto":
        asked = parse_device(device)
        if asked.type != place.type or (asked.index is not None and asked.index != place.index):
            raise ValueError(f"expected a classifier on {device}, got one on {place}: move it, by model.to({device!r})")
    return parse_device(str(place))


def output_folder(out: str | os.PathLike[str]) -> Path:
    """The output folder. NotADirectoryError for a file, FileExistsError for a folder of other things."""
    folder = check_path("out", out)
    check_encodable(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder for the results")
    if folder.is_dir():
        found = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
        if found and not set(found) & set(PARTS):
            raise FileExistsError(
                f"{folder} holds other things, such as {min(found)}: pass an empty folder, or a new one"
            )
    return folder


def function_key(model: nn.Module, images: Tensor, logits: Tensor, store: Store) -> str:
    """SHA-256, in hexadecimal, of what the model computes with, and of what it gives.

    Its logits of the images are kept under that hash. Where others are found there, its function has changed by
    something that the hash does not see: it gets a key of its own, as it does for other images.
    """
    identity = identity_of(model)
    tolerance = SAME_BATCH / 10 if identity.complete else 0.0  # for another number of threads
    for trial in range(MOST_TRIALS):
        recipe = {"stage": "trial", "classifier": identity.key, "images": digest(images), "number": trial}
        entry = store.read(recipe)
        known = None if entry is None else entry.tensors.get("logits")
        given = logits.cpu()
        if known is None:
            store.write(recipe, Entry({"logits": given}, 0.0))
            break
        if known.shape == given.shape and difference(known.double(), given.double()) <= tolerance:
            break
    else:
        raise ValueError(
            f"{store.folder} has results of {MOST_TRIALS} functions of this classifier, of the same code "
            "and weights, already: pass another folder"
        )
    return hashlib.sha256(canonical(recipe).encode()).hexdigest()


def renewed_report(folder: Path) -> Path:
    """The page of all tables of the folder. Another process may be writing it, for a moment."""
    for _ in range(REPORT_TRIALS):
        try:
            return write_report(folder, force=True)
        except BlockingIOError:
            time.sleep(REPORT_PAUSE)
    return write_report(folder, force=True)
