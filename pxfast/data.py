"""Real data sets as uint8 tensors, through torchvision, from files that are already on disk."""

from __future__ import annotations

import os

import torch
from torch import Tensor

DATASETS = {"fashion-mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def load_dataset(name: str, root: str | os.PathLike[str], *, train: bool) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) uint8 and labels (N,) int64 of 'fashion-mnist' or 'cifar10' under ``root``.

    ``root`` is torchvision's root folder; nothing is downloaded. Raises ValueError for an unknown name and
    FileNotFoundError when the files are not there.
    """
    from torchvision import datasets

    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; known: {', '.join(sorted(DATASETS))}")
    kind = {"fashion-mnist": datasets.FashionMNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        dataset = kind(os.fspath(root), train=train, download=False)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"{name} was not found under {os.fspath(root)} (torchvision's layout; nothing is downloaded): {error}"
        ) from None
    if name == "cifar10":
        images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    else:
        images = dataset.data.unsqueeze(1).contiguous()
    return images, torch.as_tensor(dataset.targets, dtype=torch.int64)
