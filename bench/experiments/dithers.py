"""How much cells tell of CIFAR-10's sub-pixels, by dither: the error of the best linear estimate from 7 x 7 cells.

    python bench/experiments/dithers.py --root DIR

Each sub-pixel is estimated from both ends of the cells of all channels in the 7 x 7 pixels around it, at offsets that
are drawn for each image. The coefficients are fitted on the first 400 test images, and judged on the next 400. Prints a
table of Markdown: root mean square errors in grey levels. docs/certificate.md has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pxfast.certification import cells, shifts
from pxfast.data.datasets import load_dataset
from pxfast.pixeldefend.cells import DITHERS

IMAGES = 400
SIDE = 7
STRIDE = 7  # of the positions that are estimated
WIDTHS = (32, 64, 132, 442)


def seen(images: Tensor, width: int, dither: str, seed: int) -> tuple[Tensor, Tensor]:
    """What an estimate is made of, float64 (M, K), and the sub-pixels' values (M, 3), both in units of [0, 1]."""
    offsets = torch.randint(0, width, (len(images), 1, 1, 1), generator=torch.Generator().manual_seed(seed))
    _, C, H, W = images.shape
    lower, upper = cells(images, width, offsets + shifts((C, H, W), width, dither))
    inside = torch.ones(len(images), 1, H, W, dtype=torch.uint8)
    around = torch.cat([lower, upper, inside], dim=1).double()
    about = F.unfold(around, SIDE).transpose(1, 2)[:, ::STRIDE].flatten(0, 1) / 255
    centre = F.unfold(images.double(), SIDE).unflatten(1, (C, -1))[:, :, SIDE * SIDE // 2]
    return about, centre.transpose(1, 2)[:, ::STRIDE].flatten(0, 1) / 255


def error(images: Tensor, width: int, dither: str) -> float:
    """The root mean square error of the estimate in grey levels, on the second half of the images."""
    first, second = images.chunk(2)
    about, values = seen(first, width, dither, 0)
    ridge = 1e-3 * torch.eye(about.shape[1], dtype=about.dtype)
    coefficients = torch.linalg.solve(about.T @ about + ridge, about.T @ values)
    about, values = seen(second, width, dither, 1)
    return float((about @ coefficients - values).square().mean().sqrt()) * 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    images, _ = load_dataset("cifar10", parser.parse_args().root, train=False)
    images = images[: 2 * IMAGES]
    print(f"| w | {' | '.join(DITHERS)} |\n|---:|{'---:|' * len(DITHERS)}")
    for width in WIDTHS:
        print(f"| {width} | {' | '.join(f'{error(images, width, dither):.2f}' for dither in DITHERS)} |", flush=True)


if __name__ == "__main__":
    main()
