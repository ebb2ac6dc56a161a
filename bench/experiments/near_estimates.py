"""How near to an estimate PixelDefend should choose: the accuracy of guesses from CIFAR-10's cells, by reach.

    python bench/experiments/near_estimates.py --root DIR --threads 1

64 training images, which neither the estimate is fitted to nor a certificate is measured on, at 4 offsets spread over
each width; the shipped classifier, which was not trained for cells. Prints a table of Markdown: accuracy in % of single
guesses and, after the stroke, root mean square errors in grey levels. docs/certificate.md has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import pxfast
from pxfast.certification import Estimate, cells, estimates, shifts
from pxfast.classifiers import load_classifier, predict
from pxfast.data.datasets import load_dataset
from pxfast.pixeldefend.cells import midpoints

IMAGES, OFFSETS = 64, 4
WIDTHS = (32, 64, 132, 442)
REACHES = (0.75, 1.0, 1.5, 2.0, 3.0)  # errors of the estimate


def near(estimate: Estimate, reach: float, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of what is within ``reach`` errors of the estimate in each cell: uint8."""
    with mock.patch.object(estimates, "NEAR", reach):
        return estimate.near(lower, upper)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    training, labels = load_dataset("cifar10", arguments.root, train=True)
    fitted, images, labels = training[IMAGES:], training[:IMAGES], labels[:IMAGES]
    classifier = load_classifier("cifar10")
    names = ["midpoints", "estimate", *(f"{reach:g} errors" for reach in REACHES), "anywhere"]
    print(f"| w | {' | '.join(names)} |\n|---:|{'---:|' * len(names)}")
    wanted, right = images.repeat_interleave(OFFSETS, 0).float(), labels.repeat_interleave(OFFSETS)
    for width in WIDTHS:
        estimate = Estimate.fit(fitted, width=width)
        starts = (torch.arange(OFFSETS) * width // OFFSETS).reshape(-1, 1, 1, 1) + shifts((3, 32, 32), width)
        lower, upper = (each.flatten(0, 1) for each in cells(images[:, None], width, starts))
        ranges = [near(estimate, reach, lower, upper) for reach in REACHES]
        guesses = [midpoints(lower, upper) * 255, estimate(lower, upper)]
        for first, last in [*ranges, (lower, upper)]:
            guesses.append(pxfast.purify(first, within=(first, last), model="cifar10", threads=arguments.threads))
        shown = []
        for guess in guesses:
            accuracy = (predict(classifier, guess.float() / 255) == right).double().mean()
            error = (guess.float() - wanted).square().mean().sqrt()
            shown.append(f"{100 * accuracy:.0f} / {error:.1f}")
        print(f"| {width} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()
