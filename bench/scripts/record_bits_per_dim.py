"""Measure a model file's bits/dim on a whole test set, in fp32, and keep it in the file's notes.

python bench/scripts/record_bits_per_dim.py pxfast/assets/fashion-mnist.safetensors --dataset fashion-mnist --root DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.pixelcnn.files import read_metadata
from pxfast.pixelcnn.training import record_bits_per_dim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dataset", choices=sorted(DATASETS), required=True)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    arguments = parser.parse_args()
    images, _ = load_dataset(arguments.dataset, arguments.root, train=False)
    record_bits_per_dim(arguments.model, images, progress=True)
    print(read_metadata(arguments.model)[1])


if __name__ == "__main__":
    main()
