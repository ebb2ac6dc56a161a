"""Make the images of `pxfast demo` and `pxfast app`: test images, clean and attacked by FGSM.

    python bench/scripts/make_demo_assets.py --root DIR --out pxfast/assets/demo-images.safetensors
    python bench/scripts/make_demo_assets.py --root DIR --out pxfast/assets/cifar10-demo-images.safetensors \
        --dataset cifar10 --eps 8

The choice follows from the data set's order and the shipped classifier alone: of each class the first test image that
the classifier gets right, then the next ones it gets right, 16 of Fashion-MNIST and 10 of CIFAR-10 in all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from pxfast.attacks import FGSM
from pxfast.base.files import output_files, refuse_existing
from pxfast.classifiers import load_classifier, predict
from pxfast.cli.demonstration import ASSETS, CLASSES, FORMAT, MODEL
from pxfast.data.datasets import load_dataset

IMAGES = {"fashion-mnist": 16, "cifar10": 10}


def choose(labels: torch.Tensor, predicted: torch.Tensor, count: int) -> list[int]:
    """Indices of the images: one of each class in the order of the classes, then the next ones in the data's order."""
    right = torch.nonzero(labels == predicted).flatten().tolist()
    first = [next(i for i in right if labels[i] == label) for label in range(len(CLASSES))]
    more = [i for i in right if i not in first]
    return first + more[: count - len(first)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder with the data set")
    parser.add_argument("--dataset", choices=ASSETS, default=MODEL)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eps", type=int, default=25, help="of the attack, in grey levels (default 25)")
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    arguments = parser.parse_args()
    refuse_existing(arguments.out, force=arguments.force)
    classifier = load_classifier(arguments.dataset)
    images, labels = load_dataset(arguments.dataset, arguments.root, train=False)
    chosen = choose(labels[:1000], predict(classifier, images[:1000]), IMAGES[arguments.dataset])
    clean = images[chosen].contiguous()
    attacked = FGSM()(classifier, clean, None, arguments.eps)
    tensors = {
        "clean": clean,
        "attacked": attacked,
        "labels": labels[chosen].to(torch.uint8),
        "test_indices": torch.tensor(chosen, dtype=torch.int32),
    }
    metadata = {"format": FORMAT, "attack": "fgsm", "attack_eps": str(arguments.eps)}
    with output_files(arguments.out, force=arguments.force) as (temporary,):
        save_file(tensors, temporary, metadata=metadata)
    right = int((predict(classifier, attacked) == labels[chosen]).sum())
    print(f"{arguments.out}: {len(chosen)} images, {right} of them still classified rightly when attacked")


if __name__ == "__main__":
    main()
