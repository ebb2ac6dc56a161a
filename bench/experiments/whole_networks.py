"""What torch evaluates, beside a decode: likelihoods, their gradients, `verify` and a run of ADP, on one thread.

    python bench/experiments/whole_networks.py --root DIR

Takes the first test images and the models in the package, in fp32. Images a second of processor time, medians of the
turns, which are taken one after the other. Prints Markdown.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import pxfast
from pxfast.base.memory import keep_freed_memory
from pxfast.data.datasets import load_dataset
from pxfast.pixelcnn.likelihood import log_prob_gradient

EPS = 16
DATASETS = ("cifar10", "fashion-mnist")


def work(images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is measured, by name; images: uint8 (N, C, H, W)."""
    purified = pxfast.purify(images, EPS, precision="fp32", threads=1)
    x = images.float() / 255
    adp = pxfast.ADPPurifier()
    return {
        f"`purify`, eps {EPS}": lambda: pxfast.purify(images, EPS, precision="fp32", threads=1),
        "`bits_per_dim`": lambda: pxfast.bits_per_dim(images),
        f"`verify`, eps {EPS}": lambda: pxfast.verify(images, purified, EPS),
        "`log_prob_gradient`": lambda: log_prob_gradient(x),
        "`ADPPurifier`, one run": lambda: adp(x),
    }


def rates(images: torch.Tensor, turns: int) -> dict[str, float]:
    """Images a second of processor time, by name."""
    functions = work(images)
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(turns + 1):  # the first, which loads and tries things, does not count
        for name, function in functions.items():
            started = time.process_time()
            function()
            if turn:
                seconds[name].append(time.process_time() - started)
    return {name: len(images) / statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--images", type=int, default=32, help="how many test images (default 32)")
    parser.add_argument("--turns", type=int, default=3, help="how often each is measured (default 3)")
    arguments = parser.parse_args()
    if min(arguments.images, arguments.turns) < 1:
        parser.error("--images and --turns must be positive")
    torch.set_num_threads(1)
    keep_freed_memory()
    found = {}
    for name in DATASETS:
        images, _ = load_dataset(name, arguments.root, train=False)
        found[name] = rates(images[: arguments.images], arguments.turns)
    print("| images/s | " + " | ".join(DATASETS) + " |\n|---|" + "---:|" * len(DATASETS))
    for name in found[DATASETS[0]]:
        print(f"| {name} | " + " | ".join(f"{found[dataset][name]:.2f}" for dataset in DATASETS) + " |")


if __name__ == "__main__":
    main()
