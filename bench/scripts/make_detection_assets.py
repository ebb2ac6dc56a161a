"""Make what `pxfast.Detector` ships: the log-likelihoods of training images under every shipped model.

    python bench/scripts/make_detection_assets.py --root DIR                 # all training images
    python bench/scripts/make_detection_assets.py --root DIR --images 10000  # the first ones

Writes NAME-train-log-likelihoods.safetensors beside each model file, or into --out. What a killed run has computed is
kept in a .partial file beside it, and the next one goes on from there; a file that is already there and belongs to the
model's weights is left as it is, one of other weights is replaced only with --force.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import tqdm

from pxfast.base.files import refuse_existing
from pxfast.data.datasets import load_dataset
from pxfast.pixelcnn.shipped import SHIPPED, load
from pxfast.pixeldefend.detection import Detector, shipped_log_likelihoods_path

KEPT_EVERY = 1024  # images
COMPILED_FROM = 5000  # images, over which compiling pays


def load_fitting(path: Path, name: str) -> Detector | None:
    """The detector in a file, or None where there is none or it is of other weights than the shipped model's."""
    try:
        return Detector.load(path, name)
    except (FileNotFoundError, ValueError):
        return None


def make(name: str, root: Path, out: Path, images: int | None, *, force: bool) -> str:
    """Write the file of the model shipped under ``name``, unless it is there. Returns a line that says what it is."""
    train_images, _ = load_dataset(name, root, train=True)
    train_images = train_images[:images]
    there = load_fitting(out, name)
    if there is not None and len(there.log_likelihoods) == len(train_images):
        return f"{out}: {len(train_images)} images, as it was"
    refuse_existing(out, force=force)
    partial = out.with_suffix(".partial")
    detector = load_fitting(partial, name) or Detector(load(name))
    finished = 0 if detector.log_likelihoods is None else len(detector.log_likelihoods)
    if finished > len(train_images):
        detector, finished = Detector(load(name)), 0
    if len(train_images) - finished >= COMPILED_FROM:  # the sums differ by what fp32 rounds
        detector.model.log_prob = torch.compile(detector.model.log_prob)
    with tqdm(total=len(train_images), initial=finished, unit="image", desc=name) as bar:
        for batch in train_images[finished:].split(KEPT_EVERY):
            detector.partial_fit(batch)
            detector.save(partial, force=True)
            bar.update(len(batch))
    detector.save(out, force=force, notes={"data set": name, "images": f"the first {len(train_images)} for training"})
    partial.unlink()
    return f"{out}: {len(train_images)} images, mean log p {float(detector.log_likelihoods.double().mean()):.2f} nats"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="torchvision's root folder")
    parser.add_argument("--images", type=int, help="how many training images (default: all)")
    parser.add_argument("--model", choices=sorted(SHIPPED), nargs="+", default=sorted(SHIPPED), help="default: all")
    parser.add_argument("--out", type=Path, help="the folder to write into (default: beside the models)")
    parser.add_argument("--force", action="store_true", help="replace an existing file of other weights or images")
    arguments = parser.parse_args()
    if arguments.images is not None and arguments.images < 1:
        parser.error(f"--images must be positive, got {arguments.images}")
    for name in arguments.model:
        path = shipped_log_likelihoods_path(name)
        out = path if arguments.out is None else arguments.out / path.name
        print(make(name, arguments.root, out, arguments.images, force=arguments.force))


if __name__ == "__main__":
    main()
