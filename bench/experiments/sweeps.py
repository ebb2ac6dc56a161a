"""Sweeps per row of speculative decoding on real images: how good the guesses are.

    python bench/experiments/sweeps.py --dataset fashion-mnist --root DIR --images 64

Sequential decoding takes as many dependent steps a row as it has columns. ``carried``, which the engine does: from the
second sweep on it guesses what the sweep before found. ``input``: if every sweep guessed what was given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import pxfast
from pxfast.data.datasets import DATASETS, load_dataset
from pxfast.engines import compiled, cpu
from pxfast.engines.choosers import Greedy
from pxfast.engines.schedule import schedule_for


def sweeps_from_the_input(images: Tensor, decoded: Tensor) -> int:
    """Sweeps over all rows of (N, C, H, W) uint8 images that guess the input every time, given what they decode to.

    A sweep's choices are right up to and including the first pixel that differs from the guess. Each sweep of a row
    ends at one of the pixels that decoding changes, and behind the last of these one more confirms the rest.
    """
    changed = (images != decoded).any(dim=1)
    return int(changed.sum()) + int((~changed[:, :, -1]).sum())


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
            chooser = compiled.chooser_for(Greedy(eps), images)
            carried = engine.profile(images.numpy(), chooser, compiled.ORDERS["speculative"])["sweeps"]
            decoded = cpu.decode(schedule_for(model), images, Greedy(eps), precision="bf16")
            given = sweeps_from_the_input(images, decoded)
            print(f"| {name} | {eps} | {carried / rows:.2f} | {given / rows:.2f} | {clean.shape[3]} |", flush=True)


if __name__ == "__main__":
    main()
