"""Sweeps per row of speculative decoding on real images: how good the guesses are.

    python bench/experiments/sweeps.py --dataset fashion-mnist --root DIR --images 64

Sequential decoding takes as many dependent steps a row as it has columns. ``input``: every sweep guesses what was
given; ``carried``, which the engine does: from the second sweep on, what the sweep before found.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import pxfast
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.engines import compiled, cpu
from pxfast.engines.choosers import Greedy
from pxfast.engines.schedule import schedule_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=sorted(DATASETS), default="fashion-mnist")
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--model", help="a model's name or file; default: the data set's shipped one")
    parser.add_argument("--images", type=int, default=64)
    arguments = parser.parse_args()
    clean = load_dataset(arguments.dataset, arguments.root, train=False)[0][: arguments.images]
    noise = torch.randint(-8, 9, clean.shape, generator=torch.Generator().manual_seed(0))
    noisy = (clean.int() + noise).clamp(0, 255).to(torch.uint8)
    model = pxfast.load(arguments.model or arguments.dataset)
    engine = cpu.packed(schedule_for(model), "bf16", cpu.isa_of())
    rows = len(clean) * clean.shape[2]
    print("| images | eps | sweeps a row, carried | input | columns |")
    print("|---|---:|---:|---:|---:|")
    for name, images in (("clean", clean), ("noise of 8", noisy)):
        for eps in (16, 32):
            counts = [
                engine.profile(
                    images.numpy(),
                    compiled.plain_chooser(Greedy(eps), len(images)),
                    compiled.ORDERS["speculative"],
                    keep_guess=keep,
                )["sweeps"]
                / rows
                for keep in (False, True)
            ]
            print(f"| {name} | {eps} | {counts[0]:.2f} | {counts[1]:.2f} | {clean.shape[3]} |", flush=True)


if __name__ == "__main__":
    main()
