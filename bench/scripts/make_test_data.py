"""Writes the files of tests/data that hold real images and the authors' results, byte for byte.

    python bench/scripts/make_test_data.py --root DATA --golden GOLDEN --out tests/data

``real_images.npz`` holds the first 64 test images of Fashion-MNIST and the first 48 of CIFAR-10. Each golden file is a
cut of a complete one in GOLDEN, which the TensorFlow graph that the PixelDefend authors released has made: the first
image, and its 256-way log-probabilities in two rows in the middle. A file that is there is replaced with --force only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pxfast.base.files import output_files
from pxfast.data.datasets import load_dataset

REAL = {"fashion-mnist": 64, "cifar10": 48}
GOLDEN = ("fashion_28x28_f12_r1", "cifar_16x16_f16_r1")
SETTINGS = ("eps", "resnets", "filters", "mixtures")
RESULTS = ("clean", "attacked", "purified", "params", "nll")
ROWS = 2  # of log-probabilities


def real_images(root: Path) -> dict[str, np.ndarray]:
    """The first test images (N, C, H, W) uint8 of each data set in the torchvision folder ``root``."""
    return {
        name.replace("-", "_"): load_dataset(name, root, train=False)[0][:count].numpy() for name, count in REAL.items()
    }


def golden_cut(path: Path) -> dict[str, np.ndarray]:
    """The settings and weights of a complete golden file, and what it says of its first image."""
    with np.load(path) as file:
        complete = dict(file)
    cut = {name: complete[name] for name in SETTINGS}
    cut |= {name: array for name, array in complete.items() if name.startswith("weights/")}
    cut |= {name: complete[name][:1] for name in RESULTS}
    row = complete["clean"].shape[1] // 2
    return {**cut, "log_probs": complete["log_probs"][:1, row : row + ROWS], "log_probs_row": np.array(row)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's folder of both data sets")
    parser.add_argument("--golden", type=Path, required=True, help="the folder of the complete golden files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--force", action="store_true", help="replace existing files")
    arguments = parser.parse_args()
    makers = {"real_images": lambda: real_images(arguments.root)}
    makers |= {name: lambda name=name: golden_cut(arguments.golden / f"{name}.npz") for name in GOLDEN}
    for name, make in makers.items():
        path = arguments.out / f"{name}.npz"
        with output_files(path, force=arguments.force) as (temporary,):
            np.savez_compressed(temporary, **make())
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
