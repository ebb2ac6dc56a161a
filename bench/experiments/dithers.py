"""How much cells tell of CIFAR-10's sub-pixels, by dither: the error of estimates from the cells around them.

    python bench/experiments/dithers.py --root DIR

The estimates are those of `pxfast.certification.Estimate`: fitted to 256 training images, judged on the first 400 test
images, each of which is seen at one random offset. Prints tables of Markdown: root mean square errors in grey levels,
by dither and stage, then with a third stage and other windows. docs/certificate.md has them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from pxfast.certification import Estimate, cells, estimates, shifts
from pxfast.data.datasets import load_dataset
from pxfast.pixeldefend.cells import DITHERS

IMAGES = 400
WIDTHS = (32, 64, 132, 442)
OTHERS = {"3 stages": {"STAGES": 3}, "9 x 9 pixels": {"SIDE": 9}}  # what else `Estimate` might do


def error(estimate: Estimate, images: Tensor) -> float:
    """The root mean square error of an estimate in grey levels, before it is rounded."""
    offsets = torch.randint(0, estimate.width, (len(images), 1, 1, 1), generator=torch.Generator().manual_seed(1))
    starts = offsets + shifts(estimate.image_shape, estimate.width, estimate.dither)
    found = estimate.values(*cells(images, estimate.width, starts))
    return float((found - images.double()).square().mean().sqrt())


def errors(training: Tensor, images: Tensor, width: int, dither: str, changes: dict[str, int]) -> float:
    """The error on ``images`` of an estimate that is fitted to ``training`` with other constants of its module."""
    with mock.patch.multiple(estimates, **changes):
        return error(Estimate.fit(training, width=width, dither=dither), images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    root = parser.parse_args().root
    training, _ = load_dataset("cifar10", root, train=True)
    images = load_dataset("cifar10", root, train=False)[0][:IMAGES]
    columns = [(dither, stages) for dither in DITHERS for stages in (1, 2)]
    print(f"| w | {' | '.join(f'{dither}, stage {stages}' for dither, stages in columns)} |\n|---:|{'---:|' * 4}")
    for width in WIDTHS:
        shown = (errors(training, images, width, dither, {"STAGES": stages}) for dither, stages in columns)
        print(f"| {width} | {' | '.join(f'{each:.2f}' for each in shown)} |", flush=True)
    print(f"\n| w | {' | '.join(OTHERS)} |\n|---:|{'---:|' * len(OTHERS)}")
    for width in WIDTHS:
        shown = (errors(training, images, width, "lattice", changes) for changes in OTHERS.values())
        print(f"| {width} | {' | '.join(f'{each:.2f}' for each in shown)} |", flush=True)


if __name__ == "__main__":
    main()
