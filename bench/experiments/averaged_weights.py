"""Whether a training run's averaged weights or its last ones are better: bits/dim of both, from its checkpoint.

    python bench/experiments/averaged_weights.py DATASET CHECKPOINT --root DIR [--images 1500]

CHECKPOINT: what `pxfast train` keeps beside its output. Measured on the first test images, in fp32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.pixelcnn.network import PixelCNN
from pxfast.pixelcnn.training.trainer import CHECKPOINT_FORMAT, mean_bits_per_dim, read_settings
from pxfast.training.checkpoints import read_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--images", type=int, default=1500, help="test images")
    arguments = parser.parse_args()
    images = load_dataset(arguments.dataset, arguments.root, train=False)[0][: arguments.images]
    config, _ = read_settings(arguments.checkpoint)
    tensors, _ = read_checkpoint(arguments.checkpoint, CHECKPOINT_FORMAT)
    network = PixelCNN(config).eval()
    for part, name in (("averaged", "averaged"), ("model", "last")):
        network.load_state_dict({key.partition(".")[2]: v for key, v in tensors.items() if key.startswith(f"{part}.")})
        print(f"{name}: {mean_bits_per_dim(network, images):.4f} bits/dim of {len(images)} test images")


if __name__ == "__main__":
    main()
