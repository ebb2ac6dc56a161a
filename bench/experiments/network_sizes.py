"""Which width and depth learn fastest: bits/dim that several small networks reach in the same training time.

python bench/experiments/network_sizes.py DATASET --root DIR --folder DIR [--budget 10m] [options of `pxfast train`...]

Each network is trained from nothing by `pxfast train --preset small`, one after the other, and measured on the whole
test set. Files stay in the folder: a killed comparison goes on where it was. One of another budget or other options
needs another folder. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pxfast
from pxfast.base.files import whole_file
from pxfast.data.datasets import DATASETS
from pxfast.pixelcnn.files import read_metadata

SIZES = ((32, 2), (48, 1), (48, 2))  # filters, resnets


def trained(file: Path, command: list[str]) -> dict:
    """The notes of a model file, which `pxfast train` makes first, or goes on with: the last note is of test images."""
    if not file.exists() or "test_bits_per_dim" not in read_metadata(file)[1]:
        resume = ["--resume"] if file.with_suffix(".checkpoint.safetensors").exists() else []
        subprocess.run([sys.executable, "-m", "pxfast.cli", "train", *command, "--out", str(file), *resume], check=True)
    return read_metadata(file)[1]


def claim(folder: Path, dataset: str, settings: dict[str, object]) -> None:
    """Note how the data set's networks in the folder are trained. SystemExit where they were trained otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    record, models = folder / f"{dataset}-settings.json", sorted(folder.glob(f"{dataset}-*-*.safetensors"))
    before = json.loads(record.read_text()) if record.exists() else None
    if before is not None and before != settings:
        raise SystemExit(f"{folder} has networks that were trained with {before}, not with {settings}: take another")
    if before is None and models:
        raise SystemExit(f"{folder} has {models[0].name}, and no {record.name} says how it was trained: take another")
    with whole_file(record) as temporary:
        temporary.write_text(json.dumps(settings) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--root", required=True, help="torchvision's root folder")
    parser.add_argument("--folder", type=Path, required=True, help="where the models go")
    parser.add_argument("--budget", default="10m", help="training time of each")
    arguments, options = parser.parse_known_args()
    claim(arguments.folder, arguments.dataset, {"budget": arguments.budget, "options": options})
    rows = []
    for filters, resnets in SIZES:
        command = [arguments.dataset, "--root", arguments.root, "--preset", "small", "--budget", arguments.budget]
        command += ["--filters", str(filters), "--resnets", str(resnets)]
        file = arguments.folder / f"{arguments.dataset}-{filters}-{resnets}.safetensors"
        notes = trained(file, [*command, *options])
        parameters = sum(weight.numel() for weight in pxfast.load(file).parameters()) / 1e6
        rows.append(
            f"| {filters}, {resnets} | {parameters:.2f} M | {notes['images_seen']:,} | "
            f"{notes['images_seen'] / notes['seconds']:.0f} | {notes['test_bits_per_dim']:.3f} |"
        )
    print("| filters, resnets | parameters | images seen | images/s | bits/dim |\n|---|---:|---:|---:|---:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
